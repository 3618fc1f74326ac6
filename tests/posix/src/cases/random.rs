//! Long sequences of changes to one file, each checked against a copy in memory.

use std::fs::File;

use rustix::fs::{copy_file_range, fallocate, ftruncate};

use crate::check::*;

cases! {
    a_file_and_its_model_stay_the_same
    another_sequence
    a_sequence_with_two_descriptors_and_a_third_that_appends
}

/// Most bytes that the file has.
const MOST: u64 = 200_000;
const STEPS: u32 = 150;

/// The file, through two descriptors that must not differ, and what it should hold.
struct Model {
    random: Random,
    fds: [File; 2],
    bytes: Vec<u8>,
    appends: bool,
}

fn a_file_and_its_model_stay_the_same() {
    Model::new(1, false).go();
}

fn another_sequence() {
    Model::new(77, false).go();
}

fn a_sequence_with_two_descriptors_and_a_third_that_appends() {
    Model::new(4711, true).go();
}

impl Model {
    fn new(seed: u64, appends: bool) -> Self {
        let first = File::from(create("file"));
        let other = if appends {
            File::options().read(true).write(true).open("file").unwrap()
        } else {
            first.try_clone().unwrap()
        };
        Self { random: Random(seed), fds: [first, other], bytes: Vec::new(), appends }
    }

    fn go(mut self) {
        for step in 0..STEPS {
            let what = self.step();
            let size = fstat(&self.fds[0]).st_size as usize;
            assert_eq!(size, self.bytes.len(), "the size after step {step}, {what}");
            let (at, length) = self.range();
            let fd = self.fd();
            let seen = pread(fd, length, at as u64);
            self.compare(&seen, at, &format!("step {step}, {what}"));
        }
        self.compare(&content("file"), 0, "the end");
        rustix::fs::fsync(&self.fds[0]).unwrap();
        self.compare(&pread(open("file", OFlags::RDONLY), MOST as usize * 2, 0), 0, "the flush");
    }

    fn compare(&self, seen: &[u8], at: usize, when: &str) {
        let expected = self.bytes.get(at..).unwrap_or_default();
        let expected = &expected[..expected.len().min(seen.len())];
        let differs = seen.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!((differs, seen.len()), (None, expected.len()), "after {when}: from byte {at} on");
    }

    fn fd(&mut self) -> &File {
        let which = self.random.below(2) as usize;
        &self.fds[which]
    }

    /// A place and a length within the largest file.
    fn range(&mut self) -> (usize, usize) {
        let at = self.random.below(MOST);
        let most = if self.random.below(4) == 0 { MOST - at } else { 5000.min(MOST - at) };
        (at as usize, self.random.below(most) as usize + 1)
    }

    /// A range of the file as it is.
    fn inside(&mut self) -> Option<(usize, usize)> {
        let size = self.bytes.len() as u64;
        let at = (size > 0).then(|| self.random.below(size))?;
        Some((at as usize, self.random.below(10_000.min(size - at)) as usize + 1))
    }

    fn grow(&mut self, size: usize) {
        let size = size.max(self.bytes.len());
        self.bytes.resize(size, 0);
    }

    fn step(&mut self) -> &'static str {
        match self.random.below(10) {
            0..=2 => self.write(),
            3 => self.truncate(),
            4 | 5 => self.map(),
            6 => self.punch(),
            7 => self.zero(),
            8 => self.copy(),
            _ => self.append(),
        }
    }

    fn write(&mut self) -> &'static str {
        let (at, length) = self.range();
        let bytes = noise(self.random.next(), length);
        pwrite(self.fd(), &bytes, at as u64);
        self.grow(at + length);
        self.bytes[at..at + length].copy_from_slice(&bytes);
        "write"
    }

    fn truncate(&mut self) -> &'static str {
        let size = self.random.below(MOST);
        ftruncate(self.fd(), size).unwrap();
        self.bytes.resize(size as usize, 0);
        "truncate"
    }

    fn map(&mut self) -> &'static str {
        let Some((at, length)) = self.inside() else { return "nothing" };
        let bytes = noise(self.random.next(), length);
        let map = Map::shared(&self.fds[0], self.bytes.len());
        assert_eq!(map.get(at, length), self.bytes[at..at + length], "a mapping differs");
        map.set(at, &bytes);
        if self.random.below(2) == 0 {
            map.sync();
        }
        self.bytes[at..at + length].copy_from_slice(&bytes);
        "map"
    }

    fn punch(&mut self) -> &'static str {
        let (at, length) = self.range();
        fallocate(self.fd(), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at as u64, length as u64).unwrap();
        let end = self.bytes.len().min(at + length);
        if let Some(bytes) = self.bytes.get_mut(at..end) {
            bytes.fill(0);
        }
        "punch"
    }

    fn zero(&mut self) -> &'static str {
        let (at, length) = self.range();
        fallocate(self.fd(), FallocateFlags::ZERO_RANGE, at as u64, length as u64).unwrap();
        self.grow(at + length);
        self.bytes[at..at + length].fill(0);
        "zero"
    }

    fn copy(&mut self) -> &'static str {
        let Some((from, length)) = self.inside() else { return "nothing" };
        let to = self.random.below(MOST - length as u64) as usize;
        if from.abs_diff(to) < length {
            return "nothing";
        }
        let (mut at_from, mut at_to) = (from as u64, to as u64);
        let copied = copy_file_range(&self.fds[0], Some(&mut at_from), &self.fds[1], Some(&mut at_to), length);
        assert_eq!(copied, Ok(length), "a short copy");
        self.grow(to + length);
        self.bytes.copy_within(from..from + length, to);
        "copy"
    }

    fn append(&mut self) -> &'static str {
        if !self.appends || self.bytes.len() as u64 + 3000 > MOST {
            return "nothing";
        }
        let bytes = noise(self.random.next(), 3000);
        write(open("file", OFlags::WRONLY | OFlags::APPEND), &bytes);
        self.bytes.extend(bytes);
        "append"
    }
}
