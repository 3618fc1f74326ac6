//! The root file system and the mounts of a bundle.

#[path = "filesystem/opens.rs"]
mod opens;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::json;
use tests::{Scene, process};

/// Size of the file that must go through the root file system unharmed.
const BIG: usize = 200 << 20;

/// After this long a container sees what the host wrote into a file: documented, see docs/compatibility.md.
const COHERENCE: std::time::Duration = std::time::Duration::from_millis(100);

#[test]
fn what_the_container_writes_is_on_the_host() {
    let scene = Scene::new();
    let mut container = scene.container();
    let script = "echo text >/new; mkdir /dir; ln -s target /link; ln /new /dir/hard; mkfifo /fifo
        rm /etc/group; mv /etc/passwd /dir/moved; echo more >>/new; chmod 640 /new; chown 5:6 /new";
    container.sh(script).run().success();
    let at = |name: &str| container.rootfs().join(name);
    assert_eq!(fs::read_to_string(at("new")).unwrap(), "text\nmore\n");
    let meta = fs::metadata(at("new")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.nlink()), (5, 6, 0o640, 2));
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("target"));
    assert_eq!(fs::metadata(at("fifo")).unwrap().mode() & 0o170000, 0o010000);
    assert!(!at("etc/group").exists() && at("dir/moved").exists());
}

#[test]
fn what_the_host_writes_is_in_the_container() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut created = container.sh("read line; cat /from-host; echo; read line; cat /from-host; echo").up();
    let stdin = created.stdin.take().unwrap();
    for text in ["first", "another, longer"] {
        fs::write(container.rootfs().join("from-host"), text).unwrap();
        std::thread::sleep(COHERENCE);
        rustix::io::write(&stdin, b"go\n").unwrap();
        assert_eq!(created.stdout.line(), text);
    }
    assert_eq!(process::wait_orphan(created.pid), 0);
}

#[test]
fn a_big_file_goes_through_unharmed() {
    let scene = Scene::new();
    let mut container = scene.container();
    let original = scene.dir().join("original");
    fs::write(&original, noise(BIG)).unwrap();
    fs::copy(&original, container.rootfs().join("big")).unwrap();
    let sum = tests::command::run(std::process::Command::new("md5sum").arg(&original)).success();
    let seen = container.sh("md5sum </big; cp /big /copy; sync; cmp /big /copy && echo same").run().success();
    let (in_guest, same) = seen.stdout.split_once('\n').unwrap();
    assert_eq!(in_guest.split(' ').next(), sum.stdout.split(' ').next());
    assert_eq!(same, "same\n");
    assert!(equal(&original, &container.rootfs().join("copy")), "the copy that the container wrote differs");
}

#[test]
fn a_tree_can_be_removed_while_it_is_listed() {
    let scene = Scene::new();
    let mut container = scene.container();
    let tree = container.rootfs().join("tree");
    for number in 0..300 {
        fs::create_dir_all(tree.join(format!("a-rather-long-name-of-a-directory-{number}"))).unwrap();
        fs::write(tree.join(format!("a-rather-long-name-of-a-directory-{number}/file")), "x").unwrap();
    }
    container.sh("rm -r /tree && ls /tree").run().failure();
    assert!(!tree.exists());
}

/// A file that the container has seen, then changed on the host in every way; it opens it at once.
#[test]
fn an_open_sees_what_the_host_did() {
    let scene = Scene::new();
    let mut container = scene.container();
    let dir = scene.dir().join("volume");
    fs::create_dir(&dir).unwrap();
    let (on_root, on_volume) = (container.rootfs().join("file"), dir.join("file"));
    container.mount("bind", &dir, "/volume", &["rbind"]);
    for file in [&on_root, &on_volume] {
        fs::write(file, "first").unwrap();
    }
    let script = "while read line; do cat /file /volume/file; echo; stat -c %s /file >/dev/null; done";
    let mut created = container.sh(script).up();
    let stdin = created.stdin.take().unwrap();
    let mut look = |expected: &str| {
        rustix::io::write(&stdin, b"go\n").unwrap();
        assert_eq!(created.stdout.line(), expected);
    };
    std::thread::sleep(std::time::Duration::from_millis(50));
    look("firstfirst");
    for file in [&on_root, &on_volume] {
        fs::write(file, "rewritten, longer").unwrap();
    }
    look("rewritten, longerrewritten, longer");
    for file in [&on_root, &on_volume] {
        let new = file.with_file_name("new");
        fs::write(&new, "replaced").unwrap();
        fs::rename(&new, file).unwrap();
    }
    look("replacedreplaced");
    for file in [&on_root, &on_volume] {
        fs::remove_file(file).unwrap();
        fs::write(file, "made anew").unwrap();
    }
    look("made anewmade anew");
    drop(stdin);
    assert_eq!(process::wait_orphan(created.pid), 0);
}

#[test]
fn vm_what_may_be_kept_is_chosen() {
    let scene = Scene::new();
    let mut container = scene.container();
    let dir = scene.dir().join("volume");
    fs::create_dir(&dir).unwrap();
    container.mount("bind", &dir, "/volume", &["rbind"]);
    container.set("/annotations", json!({"io.runvm.cache": "/volume=exclusive"}));
    let mut created =
        container.sh("ls /volume/late /late; echo; read line; ls /late; ls /volume/late || echo kept").up();
    assert_eq!(created.stdout.line(), "");
    for late in [dir.join("late"), container.rootfs().join("late")] {
        fs::write(late, "").unwrap();
    }
    drop(created.stdin.take());
    assert_eq!((created.stdout.line(), created.stdout.line()), ("/late".to_owned(), "kept".to_owned()));
    assert_eq!(process::wait_orphan(created.pid), 0);
    let mut other = scene.container();
    other.set("/annotations", json!({"io.runvm.cache": "/nowhere=none"}));
    scene.refused(&other.try_create(), &["annotation io.runvm.cache", "nothing of the host is mounted on /nowhere"]);
}

/// Bytes without a pattern, the same each time.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block: Vec<u8> = Vec::with_capacity(1 << 16);
    while block.len() < 1 << 16 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend(state.to_le_bytes());
    }
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        // Each block begins with its number, so that swapped ones are noticed.
        let start = bytes.len();
        bytes.extend_from_slice(&block);
        bytes[start..start + 8].copy_from_slice(&(start as u64).to_le_bytes());
    }
    bytes
}

fn equal(a: &Path, b: &Path) -> bool {
    let (mut a, mut b) = (fs::File::open(a).unwrap(), fs::File::open(b).unwrap());
    let (mut left, mut right) = (Vec::new(), Vec::new());
    a.read_to_end(&mut left).unwrap();
    b.read_to_end(&mut right).unwrap();
    left == right
}

#[test]
fn a_read_only_root() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/root/readonly", json!(true));
    let outcome = container.sh("touch /file; echo code $?; touch /dev/shm/file && echo tmpfs is writable").run();
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    assert_eq!(outcome.success().stdout, "code 1\ntmpfs is writable\n");
    assert!(!container.rootfs().join("file").exists());
}

#[test]
fn a_root_outside_the_bundle() {
    let scene = Scene::new();
    let (elsewhere, mut container) = (scene.container(), scene.container());
    fs::write(elsewhere.rootfs().join("mark"), "elsewhere").unwrap();
    container.set("/root/path", json!(elsewhere.rootfs()));
    assert_eq!(container.sh("cat /mark").run().success().stdout, "elsewhere");
}

#[test]
fn the_specs_mounts_are_there_with_their_options() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.mount("tmpfs", Path::new("tmpfs"), "/mnt/small", &["noexec", "size=1m", "mode=700"]);
    let outcome = container.sh("cat /proc/mounts; df -k /mnt/small | tail -n 1; stat -c %a /mnt/small").run().success();
    let mount = |point: &str| {
        let found = outcome.stdout.lines().rfind(|line| line.split(' ').nth(1) == Some(point));
        let words: Vec<_> = found.unwrap_or_else(|| panic!("no {point}: {outcome:?}")).split(' ').collect();
        (words[2].to_owned(), words[3].split(',').map(str::to_owned).collect::<Vec<_>>())
    };
    let expected = [
        ("/proc", "proc", "rw"),
        ("/dev", "tmpfs", "nosuid"),
        ("/dev/pts", "devpts", "noexec"),
        ("/dev/shm", "tmpfs", "nodev"),
        ("/dev/mqueue", "mqueue", "nodev"),
        ("/sys", "sysfs", "ro"),
        ("/mnt/small", "tmpfs", "noexec"),
    ];
    for (point, kind, option) in expected {
        let (found, options) = mount(point);
        assert_eq!(found, kind, "{point}");
        assert!(options.iter().any(|found| found == option), "{point}: {option} not in {options:?}");
    }
    let mut lines = outcome.stdout.lines().rev();
    assert_eq!(lines.next(), Some("700"));
    assert!(lines.next().unwrap().split_whitespace().any(|word| word == "1024"), "{outcome:?}");
}

#[test]
fn the_devices_that_the_specification_names() {
    let scene = Scene::new();
    let script = "for n in null zero full random urandom tty; do stat -c '%n %F %a %t:%T' /dev/$n; done
        for l in fd stdin stdout stderr ptmx; do echo $l $(readlink /dev/$l); done
        echo x >/dev/null && head -c 4 /dev/zero | od -An -tx1 && head -c 8 /dev/urandom | wc -c; echo x >/dev/full";
    let outcome = scene.sh(script).failure();
    let expected = "/dev/null character special file 666 1:3
/dev/zero character special file 666 1:5
/dev/full character special file 666 1:7
/dev/random character special file 666 1:8
/dev/urandom character special file 666 1:9
/dev/tty character special file 666 5:0
fd /proc/self/fd
stdin /proc/self/fd/0
stdout /proc/self/fd/1
stderr /proc/self/fd/2
ptmx pts/ptmx
 00 00 00 00
8
";
    assert_eq!(outcome.stdout, expected);
    assert!(outcome.stderr.contains("No space left on device"), "{outcome:?}");
}

#[test]
fn devices_of_the_spec() {
    let scene = Scene::new();
    let mut container = scene.container();
    let device =
        json!({"type": "c", "path": "/dev/own", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4});
    container.set("/linux/devices", json!([device]));
    let outcome = container.args(&["stat", "-c", "%F %a %u %g %t:%T", "/dev/own"]).run().success();
    assert_eq!(outcome.line(), "character special file 640 3 4 1:5");
}

#[test]
fn a_directory_of_the_host() {
    let scene = Scene::new();
    let mut container = scene.container();
    let dir = scene.dir().join("shared");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("in"), "from the host").unwrap();
    container.mount("bind", &dir, "/made/here", &["rbind", "rw"]);
    let outcome = container.sh("cat /made/here/in; echo from the guest >/made/here/out").run().success();
    assert_eq!(outcome.stdout, "from the host");
    assert_eq!(fs::read_to_string(dir.join("out")).unwrap(), "from the guest\n");
}

#[test]
fn a_single_file_of_the_host() {
    let scene = Scene::new();
    let mut container = scene.container();
    let file = scene.dir().join("hosts");
    fs::write(&file, "before\n").unwrap();
    container.mount("bind", &file, "/etc/hosts", &["bind"]);
    let mut created =
        container.sh("cat /etc/hosts; echo read; read line; cat /etc/hosts; echo guest >>/etc/hosts").up();
    assert_eq!((created.stdout.line(), created.stdout.line()), ("before".to_owned(), "read".to_owned()));
    // In place, as engines rewrite /etc/hosts and /etc/resolv.conf.
    fs::write(&file, "after, and longer\n").unwrap();
    std::thread::sleep(COHERENCE);
    drop(created.stdin.take());
    assert_eq!(created.stdout.line(), "after, and longer");
    assert_eq!(process::wait_orphan(created.pid), 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), "after, and longer\nguest\n");
}

/// A folder of the host with another file system mounted in it, and a place for one that comes later.
struct Mounts(std::path::PathBuf);

impl Mounts {
    fn new(scene: &Scene) -> Self {
        let this = Self(scene.dir().join("mounts"));
        fs::create_dir_all(this.0.join("later")).unwrap();
        this.add("there");
        this
    }

    fn add(&self, name: &str) {
        let at = self.0.join(name);
        fs::create_dir_all(&at).unwrap();
        rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
        fs::write(at.join("file"), "").unwrap();
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for name in ["there", "later"] {
            let _ = rustix::mount::unmount(self.0.join(name), UnmountFlags::DETACH);
        }
    }
}

#[test]
fn mounts_below_a_bind_are_there_as_it_says() {
    let scene = Scene::new();
    let mounts = Mounts::new(&scene);
    let mut container = scene.container();
    let options: [(&str, &[&str]); 6] = [
        ("/one", &["bind", "rprivate"]),
        ("/all", &["rbind", "rprivate"]),
        ("/live", &["rbind", "rslave"]),
        // Where nothing is said, a mount of the container hears of the host's, with all that was there before or without.
        ("/said", &["rbind"]),
        ("/less", &["bind"]),
        ("/slave", &["bind", "slave"]),
    ];
    for (at, options) in options {
        container.mount("bind", &mounts.0, at, options);
    }
    let script = "look() { for d in one all live said less slave; do echo -n $d $(cd $d && ls */*) ''; done; echo; }
        look; read line; look; touch /all/there/mine";
    let mut created = container.sh(script).up();
    assert_eq!(created.stdout.line(), "one all there/file live there/file said there/file less slave");
    mounts.add("later");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    drop(created.stdin.take());
    let all = "later/file there/file";
    assert_eq!(
        created.stdout.line(),
        format!("one all there/file live {all} said {all} less later/file slave later/file")
    );
    assert_eq!(process::wait_orphan(created.pid), 0);
    assert!(mounts.0.join("there/mine").exists());
}

/// What is private among the container's mounts has nothing to pass on.
#[test]
fn a_bind_of_a_private_mount_is_private() {
    let scene = Scene::new();
    let mounts = Mounts::new(&scene);
    let mut container = scene.container();
    container.set("/linux/rootfsPropagation", json!("rprivate"));
    container.mount("bind", &mounts.0, "/said", &["rbind"]).mount("bind", &mounts.0, "/live", &["rbind", "rslave"]);
    let script =
        "look() { for d in said live; do echo -n $d $(cd $d && ls */*) ''; done; echo; }; look; read line; look";
    let mut created = container.sh(script).up();
    assert_eq!(created.stdout.line(), "said there/file live there/file");
    mounts.add("later");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    drop(created.stdin.take());
    assert_eq!(created.stdout.line(), "said there/file live there/file");
    assert_eq!(process::wait_orphan(created.pid), 0);
}

/// Once the guest no longer believes the name of a mount point, it looks it up again, and has to find the same directory there:
/// Linux takes away what is mounted on another one.
#[test]
fn a_volume_stays_when_its_mount_point_is_looked_up_again() {
    let scene = Scene::new();
    let mut container = scene.container();
    let volume = scene.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    container.mount("bind", &volume, "/volume", &["bind"]);
    let script = "cd /volume; for n in 1 2; do sleep 1.2; ls -d /volume; done
        pwd -P; cd /; grep -c ' /volume ' /proc/self/mountinfo";
    assert_eq!(container.sh(script).run().success().stdout, "/volume\n/volume\n/volume\n1\n");
}

#[test]
fn binds_in_binds_and_over_files() {
    let scene = Scene::new();
    let mut container = scene.container();
    let at = |name: &str| scene.dir().join(name);
    for dir in ["outer", "inner"] {
        fs::create_dir(at(dir)).unwrap();
        fs::write(at(dir).join("file"), dir).unwrap();
    }
    fs::write(at("single"), "single").unwrap();
    container.mount("bind", &at("outer"), "/a", &["rbind"]);
    container.mount("bind", &at("inner"), "/a/b/c", &["rbind"]);
    container.mount("bind", &at("single"), "/a/b/c/file", &["bind"]);
    container.mount("tmpfs", Path::new("tmpfs"), "/a/b/c/t", &["size=1m"]);
    container.mount("bind", &at("single"), "/a/b/c/t/deep/single", &["bind", "ro"]);
    let script = "cat /a/file /a/b/c/file /a/b/c/t/deep/single; echo x >/a/b/c/t/deep/single; echo new >/a/b/c/file";
    let outcome = container.sh(script).run().success();
    assert_eq!(outcome.stdout, "outersinglesingle");
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    assert_eq!(
        (fs::read_to_string(at("single")).unwrap(), fs::read_to_string(at("inner/file")).unwrap()),
        ("new\n".to_owned(), "inner".to_owned())
    );
    // The mount points were made where they are on the host.
    assert!(at("outer/b/c").is_dir() && at("inner/t").is_dir());
}

#[test]
fn a_file_over_a_directory_is_refused() {
    let scene = Scene::new();
    let file = scene.dir().join("file");
    fs::write(&file, "").unwrap();
    for (source, destination) in [(file.as_path(), "/etc"), (scene.dir(), "/etc/passwd")] {
        let mut container = scene.container();
        container.mount("bind", source, destination, &["bind"]);
        let words = ["error mounting", &format!("to rootfs at {destination:?}"), "not a directory"];
        scene.refused(&container.try_create(), &words);
    }
}

#[test]
fn a_single_file_stays_the_one_that_it_was() {
    let scene = Scene::new();
    let mut container = scene.container();
    let file = scene.dir().join("hosts");
    fs::write(&file, "before\n").unwrap();
    container.mount("bind", &file, "/etc/hosts", &["bind"]);
    let mut created = container.sh("cat /etc/hosts; read line; cat /etc/hosts; echo guest >>/etc/hosts").up();
    assert_eq!(created.stdout.line(), "before");
    let new = scene.dir().join("new");
    fs::write(&new, "renamed over it\n").unwrap();
    fs::rename(&new, &file).unwrap();
    drop(created.stdin.take());
    // A bind mount is of a file, not of a name.
    assert_eq!(created.stdout.line(), "before");
    assert_eq!(process::wait_orphan(created.pid), 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), "renamed over it\n");
}

#[test]
fn kinds_of_mounts_and_their_options() {
    let scene = Scene::new();
    let mut container = scene.container();
    let none = Path::new("none");
    container.mount("tmpfs", none, "/own", &["mode=1750", "uid=7", "gid=8", "size=64k", "nodev"]);
    container.set("/mounts/0/options", json!(["nosuid", "hidepid=invisible"]));
    container.mount("hugetlbfs", none, "/huge", &["pagesize=2M", "mode=700"]);
    container.mount("mqueue", none, "/queues", &["noexec"]);
    let script = "stat -c '%a %u:%g' /own; dd if=/dev/zero of=/own/x bs=1k count=65 2>/dev/null || echo full
        for m in /own /proc /huge /queues; do grep \" $m \" /proc/mounts | cut -d' ' -f 2-4; done";
    let outcome = container.sh(script).run().success();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines[..2], ["1750 7:8", "full"]);
    for (line, words) in lines[2..].iter().zip([
        "/own tmpfs nodev size=64k",
        "/proc proc nosuid hidepid=invisible",
        "/huge hugetlbfs pagesize=2M",
        "/queues mqueue noexec",
    ]) {
        assert!(words.split(' ').all(|word| line.split([' ', ',']).any(|found| found == word)), "{words:?}: {line:?}");
    }
    assert_eq!(lines.len(), 6, "{outcome:?}");
}

#[test]
fn ids_of_a_mount_are_mapped() {
    let scene = Scene::new();
    let disk = tests::disk::Disk::new(scene.dir());
    let volume = disk.mount();
    fs::write(volume.join("file"), "text").unwrap();
    std::os::unix::fs::chown(volume.join("file"), Some(5), Some(6)).unwrap();
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
    let mut container = scene.container();
    container.mount("bind", &volume, "/volume", &["bind"]);
    let map = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1000}]);
    container.set("/mounts/7/uidMappings", map(100)).set("/mounts/7/gidMappings", map(200));
    container.set("/process/user", json!({"uid": 107, "gid": 208}));
    let script = "stat -c %u:%g /volume/file; touch /volume/new; stat -c %u:%g /volume/new";
    assert_eq!(container.sh(script).run().success().stdout, "105:206\n107:208\n");
    let meta = fs::metadata(volume.join("new")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (7, 8));
}

#[test]
fn a_read_only_bind() {
    let scene = Scene::new();
    let mut container = scene.container();
    let dir = scene.dir().join("shared");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "mine").unwrap();
    container.mount("bind", &dir, "/data", &["rbind", "ro"]);
    let outcome = container.sh("cat /data/file; echo x >/data/file; touch /data/new; rm /data/file").run().failure();
    assert_eq!(outcome.stdout, "mine");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 3, "{outcome:?}");
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "mine");
}

#[test]
fn masked_and_read_only_paths() {
    let scene = Scene::new();
    let mut container = scene.container();
    fs::create_dir(container.rootfs().join("secrets")).unwrap();
    fs::write(container.rootfs().join("secrets/key"), "secret").unwrap();
    fs::write(container.rootfs().join("secret"), "secret").unwrap();
    container.set("/linux/maskedPaths", json!(["/secrets", "/secret", "/no/such/path"]));
    container.set("/linux/readonlyPaths", json!(["/etc", "/no/such/path"]));
    let script =
        "cat /secret; ls -A /secrets; touch /secrets/x; touch /etc/x; cat /etc/os-release >/dev/null && touch /ok";
    let outcome = container.sh(script).run().success();
    assert_eq!(outcome.stdout, "");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2, "{outcome:?}");
}

#[test]
fn kernel_settings_cannot_be_changed() {
    let scene = Scene::new();
    let script = "echo x >/proc/sysrq-trigger; echo x >/proc/sys/kernel/hostname; cat /proc/kcore; hostname";
    let outcome = scene.sh(script).success();
    // A guest's kernel need not have all of them.
    assert_eq!(outcome.stderr.matches("sh: can't create").count(), 2, "{outcome:?}");
    assert!(outcome.stderr.contains("/proc/sys/kernel/hostname: Read-only file system"), "{outcome:?}");
    assert_eq!(outcome.stdout, "guest\n");
}

#[test]
fn links_of_the_image_lead_nowhere_outside() {
    let scene = Scene::new();
    let mut container = scene.container();
    let (outside, rootfs) = (scene.dir().join("outside"), container.rootfs());
    fs::create_dir(&outside).unwrap();
    // Where the links lead inside, there is nothing; on the host there is our folder.
    symlink(&outside, rootfs.join("absolute")).unwrap();
    symlink("../../../../../../../../../../..".to_owned() + outside.to_str().unwrap(), rootfs.join("relative"))
        .unwrap();
    for link in ["/absolute", "/relative"] {
        container.mount("tmpfs", Path::new("tmpfs"), &format!("{link}/mounted"), &[]);
    }
    container.sh("touch /absolute/file /relative/mounted/file && ls /absolute").run().success();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "a link led out of the root file system");
    assert!(rootfs.join(outside.strip_prefix("/").unwrap()).join("file").exists());
}

#[test]
fn a_link_as_working_directory_stays_inside() {
    let scene = Scene::new();
    let mut container = scene.container();
    let outside = scene.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink("/tmp", container.rootfs().join("link")).unwrap();
    container.set("/process/cwd", json!("/link"));
    assert_eq!(container.sh("/bin/pwd; touch here").run().success().line(), "/tmp");
    assert!(container.rootfs().join("tmp/here").exists());
}

#[test]
fn modes_and_links_of_the_image_are_kept() {
    let scene = Scene::new();
    let mut container = scene.container();
    let file = container.rootfs().join("special");
    fs::write(&file, "x").unwrap();
    std::os::unix::fs::chown(&file, Some(1000), Some(1001)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("dangling", container.rootfs().join("soft")).unwrap();
    let outcome = container.sh("stat -c '%a %u %g %s' /special; readlink /soft").run().success();
    assert_eq!(outcome.stdout, "4751 1000 1001 1\ndangling\n");
}

#[test]
fn permissions_hold_for_other_users() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let script =
        "touch /home/app/mine && stat -c %u:%g /home/app/mine; touch /root/x; touch /x; ls /root; touch /tmp/ok";
    let outcome = container.sh(script).run().success();
    assert_eq!(outcome.stdout, "1000:1000\n");
    assert_eq!(outcome.stderr.matches("Permission denied").count(), 3, "{outcome:?}");
}

#[test]
fn vm_a_write_is_one_request() {
    let scene = Scene::new();
    let volume = scene.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("old"), "").unwrap();
    let mut container = scene.container();
    container.set("/annotations", json!({"io.runvm.timeline": "true"}));
    container.mount("bind", &volume, "/volume", &["bind"]);
    let script =
        "for file in /new /volume/new /volume/old; do dd if=/dev/zero of=$file bs=512 count=100 2>/dev/null; done";
    container.sh(script).run().success();
    let log = fs::read_to_string(scene.log()).unwrap();
    let requests = |name: &str| -> u32 {
        let count = log.split(&format!("{name} ")).nth(1).unwrap_or("0").split(',').next().unwrap();
        count.parse().unwrap_or_else(|error| panic!("{error}: {log}"))
    };
    assert!(requests("WRITE") >= 300, "{log}");
    // What the file that was there has of capabilities is asked once, and what the program and its libraries have.
    assert!(requests("GETXATTR") < 20, "{log}");
}

/// The guest's kernel knows that a file has no capabilities, also after it has asked for attributes.
#[test]
fn vm_a_files_capabilities_are_asked_for_once() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/annotations", json!({"io.runvm.timeline": "true"}));
    let script = "n=0; while [ $n -lt 100 ]; do echo $n; [ -s /written ] || exit 1; n=$((n + 1)); done >/written
        n=0; while [ $n -lt 100 ]; do : >/owned$n; chown 0:0 /owned$n; n=$((n + 1)); done";
    container.sh(script).run().success();
    let log = fs::read_to_string(scene.log()).unwrap();
    let asked = opens::requests(&log, "GETXATTR");
    assert!(opens::requests(&log, "WRITE") >= 100 && opens::requests(&log, "SETATTR") >= 100 && asked < 20, "{log}");
}

/// What ends at once is served where the guest notifies of it, and the guest's driver finds it done: nobody is interrupted.
#[test]
fn vm_a_request_is_one_exit() {
    let scene = Scene::new();
    let volume = scene.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    let mut container = scene.container();
    container.set("/annotations", json!({"io.runvm.timeline": "true"}));
    container.mount("bind", &volume, "/volume", &["bind"]);
    // The second device's line; of several processors all.
    let script = r#"
        interrupts() { awk '$1 == "6:" { for (n = 2; n <= NF && $n ~ /^[0-9]+$/; n++) sum += $n } END { print sum + 0 }' /proc/interrupts; }
        interrupts
        n=0; while [ $n -lt 300 ]; do [ -e /absent$n ]; echo text >/volume/$n; n=$((n + 1)); done
        interrupts
        n=0; while [ $n -lt 300 ]; do read line </volume/$n; [ "$line" = text ] || echo wrong; n=$((n + 1)); done
        interrupts"#;
    let counts = container.sh(script).run().success().stdout;
    let counts: Vec<u32> = counts.lines().map(|line| line.parse().expect(line)).collect();
    let [begin, made, read] = counts[..] else { panic!("{counts:?}") };
    let log = fs::read_to_string(scene.log()).unwrap();
    let requests = |name: &str| -> u32 {
        let count = log.split(&format!("{name} ")).nth(1).unwrap_or("0").split(',').next().unwrap();
        count.parse().unwrap_or_else(|error| panic!("{error}: {log}"))
    };
    assert!(requests("LOOKUP") >= 300 && requests("CREATE") >= 300 && requests("OPEN") >= 300, "{log}");
    assert!(begin > 0 && made - begin < 30 && read - made < 30, "{counts:?}: {log}");
}

#[test]
fn shared_memory_and_message_queues_work() {
    let scene = Scene::new();
    let outcome = scene.sh("echo x >/dev/shm/x; cat /dev/shm/x; touch /dev/mqueue/q; cat /dev/mqueue/q; ls /dev/pts");
    let outcome = outcome.success();
    assert!(outcome.stdout.starts_with("x\nQSIZE:0"), "{outcome:?}");
    assert!(outcome.stdout.ends_with("ptmx\n"), "{outcome:?}");
}

#[test]
fn the_cgroup_mount_shows_the_containers_own() {
    let scene = Scene::new();
    let outcome = scene.sh("cat /proc/self/cgroup; ls /sys/fs/cgroup; touch /sys/fs/cgroup/x; echo $$");
    let outcome = outcome.success();
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    for line in outcome.stdout.lines().take_while(|line| line.contains(':')) {
        assert!(line.ends_with(":/"), "the cgroup namespace shows more than the root: {line}");
    }
    if tests::place::cgroup_is_unified() || tests::place::is_runvm() {
        assert!(outcome.stdout.contains("cgroup.procs"), "{outcome:?}");
    }
}

/// A container with a volume at `/w` that is writable, the same at `/ro`, a directory of it at `/home/ci` and a file of it at `/single`.
fn overlapping<'a>(scene: &'a Scene, word: &str) -> tests::Container<'a> {
    let volume = scene.dir().join("volume");
    fs::create_dir_all(volume.join("sub/dir")).unwrap();
    fs::write(volume.join("sub/f"), "precious\n").unwrap();
    let mut container = scene.container();
    container.mount("bind", &volume, "/w", &["rbind", word]);
    container.mount("bind", &volume, "/ro", &["rbind", "ro", word]);
    container.mount("bind", &volume.join("sub"), "/home/ci", &["rbind", word]);
    container.mount("bind", &volume.join("sub/f"), "/single", &["bind", word]);
    container
}

#[test]
fn one_file_of_the_host_is_one_file() {
    let scene = Scene::new();
    for word in ["rprivate", "rslave"] {
        let script = "test $(stat -c %d:%i /w/sub/f /ro/sub/f /home/ci/f /single | uniq | wc -l) = 1 || exit 1
            cp /w/sub/f /home/ci/f 2>/dev/null; cp /single /ro/sub/f 2>/dev/null; cat /w/sub/f
            cd /home/ci && ls /w/sub >/dev/null && readlink /proc/self/cwd
            mkfifo /w/sub/fifo; echo through >/home/ci/fifo & timeout 9 cat /w/sub/fifo
            echo more >>/single; cat /home/ci/f
            exec 9</w/sub/f; flock 9; flock -n /single true || echo locked
            touch /ro/no 2>/dev/null || echo read-only
            mv /w/sub/f /w/sub/dir/moved; cat /home/ci/dir/moved; mv /home/ci/dir/moved /home/ci/f
            rm /home/ci/fifo; rmdir /home/ci/dir; ls /w/sub; ls /ro/sub; mkdir /w/sub/dir";
        let outcome = overlapping(&scene, word).sh(script).run().success();
        let expected = "precious\n/home/ci\nthrough\nprecious\nmore\nlocked\nread-only\nprecious\nmore\nf\nf\n";
        assert_eq!(outcome.stdout, expected, "{word}: {}", outcome.stderr);
    }
}
