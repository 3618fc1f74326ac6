//! What is attached to a message's head: open files, and bytes in the tail.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An open file that is part of a message.
///
/// Clones share the one descriptor, which is closed with the last of them.
#[derive(Clone, Debug)]
pub struct Descriptor(Arc<OwnedFd>);

impl Descriptor {
    /// The descriptor itself; a duplicate while there are clones.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn into_owned(self) -> io::Result<OwnedFd> {
        Arc::try_unwrap(self.0).or_else(|shared| shared.try_clone())
    }
}

impl<T: Into<OwnedFd>> From<T> for Descriptor {
    fn from(file: T) -> Self {
        Self(Arc::new(file.into()))
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Parts of the message that this thread encodes or decodes which are not in its head.
#[derive(Default)]
pub(super) struct Attached {
    pub(super) tail: Vec<u8>,
    /// In the order of their numbers in the head; empty places are those whose descriptor has been taken.
    pub(super) descriptors: Vec<Option<Descriptor>>,
}

thread_local! {
    pub(super) static ATTACHED: RefCell<Attached> = RefCell::default();
}

impl Serialize for Descriptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number = ATTACHED.with_borrow_mut(|attached| {
            attached.descriptors.push(Some(self.clone()));
            attached.descriptors.len() - 1
        });
        number.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = usize::deserialize(deserializer)?;
        ATTACHED.with_borrow_mut(|attached| match attached.descriptors.get_mut(number) {
            Some(place) => place.take().ok_or_else(|| D::Error::custom(format!("descriptor {number} is named twice"))),
            None => Err(D::Error::custom(format!("descriptor {number} did not come with the message"))),
        })
    }
}

/// `#[serde(with = "ipc::protobuf")]`: a field of the protocol's that travels encoded.
pub mod protobuf {
    use super::*;
    use ::protobuf::Message;

    /// Puts the encoded message into the tail, and its place there into the head.
    pub fn serialize<M: Message, S: Serializer>(message: &M, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error;
        let place = ATTACHED.with_borrow_mut(|attached| {
            let start = attached.tail.len();
            message.write_to_vec(&mut attached.tail).map(|()| (start, attached.tail.len()))
        });
        place.map_err(S::Error::custom)?.serialize(serializer)
    }

    /// Decodes the message from its place in the tail.
    pub fn deserialize<'de, M: Message, D: Deserializer<'de>>(deserializer: D) -> Result<M, D::Error> {
        let (start, end) = <(usize, usize)>::deserialize(deserializer)?;
        ATTACHED.with_borrow(|attached| {
            let bytes =
                attached.tail.get(start..end).ok_or_else(|| D::Error::custom("bytes are missing in its tail"))?;
            M::parse_from_bytes(bytes).map_err(D::Error::custom)
        })
    }
}

/// `#[serde(with = "ipc::bytes")]`: a field of bytes that travels as it is.
pub mod bytes {
    use super::*;

    /// Puts the bytes into the tail, and their place there into the head.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let place = ATTACHED.with_borrow_mut(|attached| {
            let start = attached.tail.len();
            attached.tail.extend_from_slice(bytes);
            (start, attached.tail.len())
        });
        place.serialize(serializer)
    }

    /// Copies the bytes from their place in the tail.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let (start, end) = <(usize, usize)>::deserialize(deserializer)?;
        let bytes = ATTACHED.with_borrow(|attached| attached.tail.get(start..end).map(<[u8]>::to_vec));
        bytes.ok_or_else(|| D::Error::custom("bytes are missing in its tail"))
    }
}
