//! What the host says of a change (`linux/fanotify.h`), taken apart.

use super::group::Object;

// Kinds of records.
const OBJECT: u8 = 1;
const NAME: u8 = 2;
const DIRECTORY: u8 = 3;
const OLD_NAME: u8 = 10;
const NEW_NAME: u8 = 12;

/// Bytes of `struct fanotify_event_metadata`.
const METADATA: usize = 24;
/// Bytes of a record's header and the file system's number.
const BEFORE_HANDLE: usize = 12;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The directory.
    pub directory: Object,
    /// The name; `.` for the directory itself.
    pub name: Vec<u8>,
}

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// What happened, several things that happened one after the other included.
    pub mask: u64,
    /// The process that did it, 0 if it is in another namespace.
    pub process: i32,
    /// Where, or from where in a rename.
    pub place: Option<Place>,
    /// Where to in a rename.
    pub to: Option<Place>,
    /// To what, where it is marked itself.
    pub object: Option<Object>,
}

/// The events in a buffer that the host's kernel has filled.
pub fn parse(mut buffer: &[u8]) -> impl Iterator<Item = Event> {
    std::iter::from_fn(move || {
        let length = number(buffer, 0)? as usize;
        let (event, rest) = buffer.split_at_checked(length).filter(|_| length >= METADATA)?;
        buffer = rest;
        one(event)
    })
}

fn one(event: &[u8]) -> Option<Event> {
    let mask = u64::from(number(event, 8)?) | u64::from(number(event, 12)?) << 32;
    let mut parsed = Event { mask, process: number(event, 20)? as i32, ..Event::default() };
    let mut records = event.get(METADATA..)?;
    while let Some(&[kind, _, low, high]) = records.first_chunk() {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let Some((record, rest)) = records.split_at_checked(length).filter(|_| length > BEFORE_HANDLE) else { break };
        records = rest;
        let Some((object, name)) = split(record) else { continue };
        match kind {
            OBJECT => parsed.object = Some(object),
            DIRECTORY => parsed.place = Some(Place { directory: object, name: b".".to_vec() }),
            NAME | OLD_NAME => parsed.place = Some(Place { directory: object, name }),
            NEW_NAME => parsed.to = Some(Place { directory: object, name }),
            _ => {}
        }
    }
    Some(parsed)
}

/// The object and the name of a record.
fn split(record: &[u8]) -> Option<(Object, Vec<u8>)> {
    let handle = number(record, BEFORE_HANDLE)? as usize;
    let (object, name) = record.get(4..)?.split_at_checked((BEFORE_HANDLE + 4).checked_add(handle)?)?;
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Some((object.into(), name.to_vec()))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}
