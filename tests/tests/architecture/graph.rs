//! Which file of a crate uses which, and what is wrong with that.

use std::collections::{BTreeMap, BTreeSet};

use super::source::Crate;

/// Files and those that they use.
#[derive(Debug, Default)]
pub struct Graph(BTreeMap<String, BTreeSet<String>>);

/// A room, and the rooms that its files may use besides their own; `x/` stands for `x` and all rooms in it. A room is a folder or
/// a file without its ending; a file belongs to the innermost that is listed.
pub type Rooms = [(&'static str, &'static [&'static str])];

impl Graph {
    /// A file uses another one when it names an item that is defined there, wherever the name was re-exported. Naming a
    /// module alone is no use of it; naming what is in it is.
    pub fn of(source: &Crate) -> Self {
        let mut this = Self::default();
        for (path, module) in &source.modules {
            let used = this.0.entry(module.file.clone()).or_default();
            let imports = module.imports.iter().map(|(_, path)| path);
            let named = imports.chain(&module.paths).flat_map(|named| source.resolve(path, named));
            let named = named.filter(|target| target.item.is_some());
            let globs = module.globs.iter().flat_map(|glob| source.resolve(path, glob));
            let files = named.chain(globs).filter_map(|target| Some(source.modules.get(&target.module)?.file.clone()));
            used.extend(files.filter(|file| *file != module.file));
        }
        this
    }

    /// Files that use each other, directly or by way of others: each list is a knot.
    pub fn circles(&self) -> Vec<BTreeSet<String>> {
        let reach: BTreeMap<&String, BTreeSet<&String>> =
            self.0.keys().map(|file| (file, self.reached(file))).collect();
        let mut circles = Vec::new();
        for (file, reached) in &reach {
            let both = reached.iter().filter(|other| reach.get(**other).is_some_and(|back| back.contains(file)));
            let circle: BTreeSet<String> = both.map(|file| (**file).clone()).collect();
            if !circle.is_empty() && !circles.contains(&circle) {
                circles.push(circle);
            }
        }
        circles
    }

    fn reached<'a>(&'a self, file: &'a String) -> BTreeSet<&'a String> {
        let mut reached = BTreeSet::new();
        let mut open = vec![file];
        while let Some(file) = open.pop() {
            open.extend(self.0.get(file).into_iter().flatten().filter(|used| reached.insert(*used)));
        }
        reached
    }

    /// Uses among these files, for a message.
    pub fn uses_among(&self, files: &BTreeSet<String>) -> Vec<String> {
        let inside = self.0.iter().filter(|(file, _)| files.contains(*file));
        let uses =
            inside.flat_map(|(file, used)| used.intersection(files).map(move |used| format!("{file} -> {used}")));
        uses.collect()
    }

    /// Uses from room to room that the table does not allow, and files in no room.
    pub fn forbidden(&self, rooms: &Rooms) -> Vec<String> {
        let mut wrong = Vec::new();
        for (file, used) in &self.0 {
            let Some((room, allowed)) = room_of(rooms, file) else {
                wrong.push(format!("{file} is in no room: say which it may use"));
                continue;
            };
            for used in used {
                let of = room_of(rooms, used).map_or("", |(room, _)| room);
                if of != room && !allowed.iter().any(|allowed| stands_for(allowed, of)) {
                    wrong.push(format!("{file} ({room}) may not use {used} ({of})"));
                }
            }
        }
        wrong
    }
}

fn room_of(rooms: &Rooms, file: &str) -> Option<(&'static str, &'static [&'static str])> {
    let name = file.strip_suffix(".rs").unwrap_or(file);
    let name = name.strip_suffix("/mod").unwrap_or(name);
    rooms.iter().filter(|(room, _)| is_in(name, room)).max_by_key(|(room, _)| room.len()).copied()
}

/// Whether the name of an allowed room stands for a room.
pub fn stands_for(allowed: &str, room: &str) -> bool {
    allowed.strip_suffix('/').map_or(allowed == room, |folder| is_in(room, folder))
}

/// Whether a name is that of a room, or below it.
fn is_in(name: &str, room: &str) -> bool {
    name.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
