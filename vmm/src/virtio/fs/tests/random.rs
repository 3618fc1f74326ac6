//! Whatever bytes come, the answer is well-formed or the device stops with an error.

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::super::Fs;
use super::super::fuse::*;
use super::guest::*;

/// Values that mean something, besides those that mean nothing.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..8u64, Just(u64::MAX), Just(1 << 32), Just(1 << 63), any::<u64>()]
}

/// A body of numbers and a tail of characters that names are made of.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let tail =
        proptest::collection::vec(prop_oneof![Just(0u8), Just(b'/'), Just(b'.'), Just(b'a'), any::<u8>()], 0..20);
    (proptest::collection::vec(number(), 0..12), tail).prop_map(|(numbers, tail)| [numbers.as_bytes(), &tail].concat())
}

/// One well-addressed request: opcode, nodeid, body, room for the reply.
fn request() -> impl Strategy<Value = (u32, u64, Vec<u8>, usize)> {
    // Whoever syncs here would sync the whole machine, again and again.
    let code = (0..60u32).prop_filter("SYNCFS", |&code| code != opcode::SYNCFS);
    (code, number(), body(), prop_oneof![Just(0usize), Just(200), Just(5000)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sequences_of_requests(requests in proptest::collection::vec(request(), 1..30)) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(at(&directory, "a"), "content").unwrap();
        let mut guest = Guest::of(Fs::with_limits(vec![share("a", directory.path(), false)], 8, 8).unwrap());
        let victim = tempfile::NamedTempFile::new_in(directory.path().parent().unwrap()).unwrap();
        guest.lookup(1, "a").unwrap();
        for (code, nodeid, body, room) in requests {
            let _ = guest.request(code, nodeid, &body, room);
        }
        prop_assert!(victim.path().exists());
    }

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 1..200), room in 0..300usize) {
        let mut guest = Guest::of(Fs::new("test", vec![]).unwrap());
        let reply = guest.raw(&bytes, room).unwrap_or_default();
        if !reply.is_empty() {
            let (header, _) = OutHeader::read_from_prefix(&reply).unwrap();
            prop_assert_eq!(header.len as usize, reply.len());
            prop_assert!(header.error <= 0 && header.error > -4096);
        }
    }
}
