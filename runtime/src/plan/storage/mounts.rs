//! Mounts, and the shares and sockets of the host that they need.
//!
//! A source on the host is one of three things to a VM: data, which is shared; something that every kernel has (/dev/null,
//! /sys/fs/cgroup), for which the guest mounts its own; or something of the host's kernel (a socket, a device), which planning
//! refuses and never replaces. Only connections to a socket can be passed on, where an annotation allows that.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use protocol::CreateContainerRequest;

use super::cache::{CachePlan, Caches};
use super::guest_mounts;
use super::mount_options::{self, MountOptions};
use super::share::{self, CommonPlan, SharePlan, ShareRole, SocketPlan, Tree};
use crate::bundle::Bundle;
use crate::plan::devices::{Destinations, Image};
use crate::plan::facts::{Facts, FileSystemKind, SocketFact, SourceFact, SourceKind};
use crate::plan::process::id_mappings;
use crate::plan::vm::Surroundings;
use crate::plan::{annotations, guest_path, nul};

/// Absolute path of the bundle's root file system.
pub fn rootfs_path(bundle: &Bundle) -> Option<PathBuf> {
    bundle.spec.root().as_ref().map(|root| bundle.dir.join(root.path()))
}

/// Absolute path on the host that a mount binds; `None` for a mount of another kind.
pub fn bind_source(mount: &Mount, bundle: &Path) -> Option<PathBuf> {
    let options = mount.options().iter().flatten();
    let bind = options.into_iter().any(|option| option == "bind" || option == "rbind");
    if !bind && mount.typ().as_deref() != Some("bind") {
        return None;
    }
    mount.source().as_ref().filter(|source| !source.as_os_str().is_empty()).map(|source| bundle.join(source))
}

/// What the mounts of a container need of the host.
#[derive(Debug)]
pub struct StoragePlan {
    /// Shares; that of the root file system is the first.
    pub shares: Vec<SharePlan>,
    /// Sockets, in the order of their mounts.
    pub sockets: Vec<SocketPlan>,
    /// Raw images that become disks.
    pub images: Vec<Image>,
}

/// Fills in root file system, mounts, masked and read-only paths; plans what they need of the host.
///
/// # Errors
/// A source is missing or cannot be in a VM, or the guest does not have the kind of file system.
pub fn plan(
    bundle: &Bundle,
    surroundings: Surroundings<'_>,
    request: &mut CreateContainerRequest,
    notes: &mut Vec<String>,
) -> anyhow::Result<StoragePlan> {
    let spec = &bundle.spec;
    let mut caches = Caches::of(spec)?;
    let Surroundings { facts, sandbox } = surroundings;
    let mut rootfs = rootfs(bundle, facts)?;
    rootfs.cache = caches.take("/", rootfs.cache);
    // The share itself stays writable: mount points are made in it, as runc does.
    request.rootfs_readonly = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let ipc_owner = sandbox.and_then(|sandbox| sandbox.owner(LinuxNamespaceType::Ipc));
    let sockets_allowed = annotations::sockets_allowed(spec)?;
    let (shares, sockets, images, disks) = (vec![rootfs], Vec::new(), Vec::new(), Destinations::of(spec)?);
    let hears = share::hears(root_propagation(spec));
    let mut planner =
        Planner { bundle, facts, ipc_owner, hears, sockets_allowed, shares, sockets, images, disks, caches, notes };
    for mount in spec.mounts().iter().flatten() {
        let planned = planner.mount(mount).with_context(|| format!("mount {}", mount.destination().display()))?;
        request.mounts.extend(planned);
    }
    planner.join_rootfs();
    request.share = planner.shares.first().map(SharePlan::place).unwrap_or_default();
    planner.caches.finish()?;
    planner.disks.finish()?;
    let planned = StoragePlan { shares: planner.shares, sockets: planner.sockets, images: planner.images };
    paths(spec, request, notes)?;
    Ok(planned)
}

fn rootfs(bundle: &Bundle, facts: &Facts) -> anyhow::Result<SharePlan> {
    let path = rootfs_path(bundle).context("root must be specified")?;
    let fact = facts.rootfs.as_ref().context("root must be specified")?;
    match &fact.kind {
        SourceKind::Directory => {}
        SourceKind::Missing(why) => bail!("invalid rootfs: stat {}: {why}", path.display()),
        _ => bail!("invalid rootfs: {}: not a directory", path.display()),
    }
    Ok(SharePlan {
        name: "rootfs".to_owned(),
        source: fact.canonical.clone(),
        id: fact.id,
        read_only: false,
        cache: CachePlan::ROOT,
        tree: Tree::Live { recursive: true },
        role: ShareRole { nosuid: false, gets_devices: !has_own_dev(&bundle.spec) },
        common: CommonPlan::Nothing,
        remote: share::remote(fact),
    })
}

/// Whether something is mounted on `/dev`.
fn has_own_dev(spec: &Spec) -> bool {
    let mut destinations = spec.mounts().iter().flatten().filter_map(|mount| mount.destination().to_str());
    destinations.any(|destination| guest_path::clean(destination) == "/dev")
}

/// What the bundle says of the propagation of mounts; empty where it says nothing.
fn root_propagation(spec: &Spec) -> &str {
    spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref()).unwrap_or_default()
}

/// Fills in masked and read-only paths and the propagation of the root.
fn paths(spec: &Spec, request: &mut CreateContainerRequest, notes: &mut Vec<String>) -> anyhow::Result<()> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let all = |field: &str, paths: &Option<Vec<String>>| {
        let paths = paths.iter().flatten();
        paths.map(|path| nul::checked(field, path).map(|path| guest_path::clean(&path))).collect::<anyhow::Result<_>>()
    };
    request.masked_paths = all("linux.maskedPaths", linux.masked_paths())?;
    request.readonly_paths = all("linux.readonlyPaths", linux.readonly_paths())?;
    if request.masked_paths.iter().any(|path| path == "/") {
        bail!("linux.maskedPaths names the root file system itself: name paths in it");
    }
    let propagation = root_propagation(spec);
    let known = mount_options::parse(&[propagation.to_owned()]).propagation != 0;
    if !propagation.is_empty() && !known {
        bail!("rootfsPropagation={propagation} is not supported");
    }
    request.rootfs_propagation = propagation.to_owned();
    if linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()) {
        notes.push("linux.mountLabel: no effect in the guest".to_owned());
    }
    Ok(())
}

struct Planner<'a> {
    bundle: &'a Bundle,
    facts: &'a Facts,
    /// Id of the container whose IPC namespace, and with it /dev/shm, is shared.
    ipc_owner: Option<&'a str>,
    /// Whether the container's mounts hear of the host's.
    hears: bool,
    /// Whether annotation `io.runvm.sockets` lets sockets of the host in.
    sockets_allowed: bool,
    shares: Vec<SharePlan>,
    caches: Caches,
    sockets: Vec<SocketPlan>,
    images: Vec<Image>,
    /// Destinations of annotation `io.runvm.disks` that no mount had yet.
    disks: Destinations,
    notes: &'a mut Vec<String>,
}

impl<'a> Planner<'a> {
    /// The mount that the guest makes; none where it gets a disk instead.
    fn mount(&mut self, mount: &Mount) -> anyhow::Result<Option<protocol::Mount>> {
        let options = mount_options::parse(mount.options().as_deref().unwrap_or_default());
        let ids = id_mappings::of_mount(mount, self.bundle.spec.linux().as_ref(), options.idmap)?;
        let destination = self.destination(mount)?;
        let kind = mount.typ().as_deref().unwrap_or_default();
        if options.copy_up && (options.bind || kind != "tmpfs") {
            bail!("option tmpcopyup works with type tmpfs only");
        }
        let is_bind = options.bind || kind == "bind";
        if is_bind && self.disks.take(&destination) {
            let image = self.image(mount, destination, options.read_only())?;
            self.images.push(image);
            return Ok(None);
        }
        let planned = match kind {
            _ if is_bind => self.bind(mount, &destination, &options, ids)?,
            _ if ids.is_some() => {
                bail!("only bind mounts can have their ids mapped: leave uidMappings and gidMappings out")
            }
            "cgroup" | "cgroup2" => guest_mounts::own(&destination, "cgroup2", "cgroup", &options),
            "" => bail!("it has no type and is not a bind mount"),
            kind if guest_mounts::KINDS.contains(&kind) => {
                guest_mounts::file_system(mount, kind, &destination, &options)?
            }
            kind => bail!(
                "type {kind:?} is not supported in a VM, which does not see the host's disks; mount it on the host \
                 and use a bind mount"
            ),
        };
        Ok(Some(planned))
    }

    fn image(&self, mount: &Mount, path: String, read_only: bool) -> anyhow::Result<Image> {
        let fact = self.source(mount)?.1;
        let (source, id) = (fact.canonical.clone(), fact.id);
        match &fact.kind {
            SourceKind::File if fact.file_system == FileSystemKind::Ordinary => {
                Ok(Image { source, id, path, read_only })
            }
            SourceKind::Missing(why) => bail!("bind source: stat {}: {why}", source.display()),
            _ => bail!("{} is not a regular file, so it cannot be a disk image", source.display()),
        }
    }

    /// Path and facts of a bind mount's source.
    fn source(&self, mount: &Mount) -> anyhow::Result<(PathBuf, &'a SourceFact)> {
        let path = bind_source(mount, &self.bundle.dir).context("a bind mount must have a source")?;
        let fact = self.facts.sources.get(&path).with_context(|| format!("{} was not looked at", path.display()))?;
        Ok((path, fact))
    }

    fn destination(&mut self, mount: &Mount) -> anyhow::Result<String> {
        let given = nul::path("destination", mount.destination())?;
        if !given.is_empty() && !mount.destination().is_absolute() {
            self.notes.push(format!("mount destination {given} is not absolute: taken below /"));
        }
        match guest_path::clean(&given) {
            clean if clean == "/" => bail!("{given:?} is the root file system itself: name a path in it"),
            clean => Ok(clean),
        }
    }

    fn bind(
        &mut self,
        mount: &Mount,
        destination: &str,
        options: &MountOptions,
        ids: Option<[String; 2]>,
    ) -> anyhow::Result<protocol::Mount> {
        let (path, fact) = self.source(mount)?;
        if !options.data.is_empty() {
            let data = options.data.join(",");
            self.notes.push(format!("mount {destination}: {data}: no effect on a bind mount"));
        }
        if let (Some(owner), "/dev/shm", Some(_)) = (self.ipc_owner, destination, fact.tmpfs_size) {
            let (container_id, source) = (owner.to_owned(), destination.to_owned());
            return Ok(protocol::Mount { container_id, source, ..guest_mounts::bind(destination, options) });
        }
        if let Some(guest) = guest_mounts::of_the_guest(fact, destination, options) {
            self.notes.push(format!("mount {destination}: {} of the host becomes the guest's own", path.display()));
            return Ok(guest);
        }
        if let (true, SourceKind::Socket(node)) = (self.sockets_allowed, &fact.kind) {
            let socket = self.socket(&path, fact, node)?;
            return Ok(protocol::Mount { socket: Some(socket).into(), ..guest_mounts::bind(destination, options) });
        }
        check_data(&path, fact)?;
        let source_is_dir = fact.kind == SourceKind::Directory;
        let cache = self.caches.take(destination, CachePlan::VOLUME);
        let (source, id, name) = (fact.canonical.clone(), fact.id, String::new());
        let role = ShareRole { nosuid: options.flags & libc::MS_NOSUID != 0, gets_devices: false };
        let read_only = options.read_only();
        // Nothing is ever mounted below a file.
        let tree = Tree::of(options, self.hears && source_is_dir, ids);
        let common = CommonPlan::of(fact, &tree);
        let remote = share::remote(fact);
        let share = self.share(SharePlan { name, source, id, read_only, cache, tree, role, common, remote });
        Ok(protocol::Mount { share, source_is_dir, ..guest_mounts::bind(destination, options) })
    }

    /// Adds a socket; the guest knows it by its index in the list.
    fn socket(&mut self, given: &Path, fact: &SourceFact, node: &SocketFact) -> anyhow::Result<protocol::Socket> {
        if node.carries_messages {
            let given = given.display();
            bail!(
                "{given} is a datagram or seqpacket socket of the host: only stream sockets can be connected from a VM"
            );
        }
        self.sockets.push(SocketPlan { source: fact.canonical.clone(), id: fact.id });
        Ok(protocol::Socket { mode: node.mode, uid: node.uid, gid: node.gid, ..Default::default() })
    }

    /// Gives the root file system files in common with volumes that are on the same file system of the host.
    fn join_rootfs(&mut self) {
        let Some((rootfs, volumes)) = self.shares.split_first_mut() else { return };
        let Some(fact) = &self.facts.rootfs else { return };
        let common = CommonPlan::files(fact);
        if volumes.iter().any(|volume| volume.common.system() == common.system()) {
            rootfs.common = common;
        }
    }

    /// Adds a share, and returns where the guest finds it; one share serves all mounts with the same source and rules.
    fn share(&mut self, wanted: SharePlan) -> String {
        let same = |share: &&SharePlan| SharePlan { name: String::new(), ..(*share).clone() } == wanted;
        if let Some(share) = self.shares.iter().skip(1).find(same) {
            return share.place();
        }
        let share = SharePlan { name: format!("m{}", self.shares.len() - 1), ..wanted };
        let place = share.place();
        self.shares.push(share);
        place
    }
}

/// Checks that a source is data, which can be shared.
fn check_data(path: &Path, fact: &SourceFact) -> anyhow::Result<()> {
    match &fact.kind {
        SourceKind::Missing(why) => bail!("bind source: stat {}: {why}", path.display()),
        SourceKind::Directory | SourceKind::File if fact.file_system == FileSystemKind::Ordinary => Ok(()),
        _ => bail!("{} is {}", path.display(), reason(fact)),
    }
}

/// The reason why a file of the host cannot be in a VM, and what to do.
fn reason(fact: &SourceFact) -> &'static str {
    match (&fact.kind, fact.file_system) {
        (SourceKind::Socket(_), _) => {
            "a socket of the host: nothing in a VM can connect to it, unless the annotation io.runvm.sockets is \
             \"true\"; \
             set it, leave the mount out, or reach the service by network"
        }
        (SourceKind::Fifo, _) => "a named pipe of the host: it cannot lead into a VM; leave it out",
        (SourceKind::CharDevice { .. }, _) => "a device of the host: it does not exist in a VM; leave it out",
        (SourceKind::BlockDevice, _) => {
            "a device of the host: in a VM it has another number; list it as a device (--device), not as a mount"
        }
        (_, FileSystemKind::Proc) => "the host's procfs: a VM has its own; use type proc",
        (_, FileSystemKind::Sys) => "the host's sysfs: a VM has its own; use type sysfs",
        (_, FileSystemKind::Cgroup) => "the host's cgroup file system: a VM has its own; use type cgroup",
        (_, FileSystemKind::Dev) => "in the host's /dev: a VM has its own; leave it out",
        _ => "not a file or directory: it cannot be shared with a VM; leave it out",
    }
}
