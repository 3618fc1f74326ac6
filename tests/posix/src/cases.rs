//! All cases, and which belong together.

/// One promise of a file system.
pub struct Case {
    module: &'static str,
    name: &'static str,
    /// Panics when it is not kept. Runs in an empty directory, which belongs to root and has mode 0755.
    pub run: fn(),
}

impl Case {
    /// `GROUP::NAME`.
    pub fn name(&self) -> String {
        let group = self.module.rsplit("::").next().unwrap_or_default();
        format!("{group}::{}", self.name)
    }
}

/// The table of a module's cases.
macro_rules! cases {
    ($($name:ident)*) => {
        /// The cases of this group.
        pub const CASES: &[crate::cases::Case] =
            &[$(crate::cases::Case { module: module_path!(), name: stringify!($name), run: $name },)*];
    };
}

mod acl;
mod data;
mod execute;
mod full;
mod links;
mod listing;
mod locks;
mod mapping;
mod modes;
mod names;
mod nodes;
mod open;
pub mod privileges;
mod random;
mod rename;
mod space;
mod times;
mod unlinked;
mod xattrs;

/// The cases of a set: `common` for any file system, `full` for a small one, `many` for a directory of ten thousand files, `quota` for one where user 1000 may have
/// little.
pub fn set(name: &str) -> Option<Vec<&'static Case>> {
    let common = [
        open::CASES,
        names::CASES,
        links::CASES,
        rename::CASES,
        unlinked::CASES,
        modes::CASES,
        privileges::CASES,
        times::CASES,
        xattrs::CASES,
        acl::CASES,
        space::CASES,
        data::CASES,
        mapping::CASES,
        random::CASES,
        listing::CASES,
        locks::CASES,
        nodes::CASES,
        execute::CASES,
    ];
    let groups = match name {
        "common" => &common[..],
        "full" => &[full::CASES],
        "many" => &[listing::MANY_THERE],
        "quota" => &[full::QUOTA],
        _ => return None,
    };
    Some(groups.iter().copied().flatten().collect())
}
