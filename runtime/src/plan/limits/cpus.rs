//! CPUs: lists of them, and the period of a quota.

/// `cpu.cfs_period_us` when the bundle has none.
pub const DEFAULT_PERIOD: u64 = 100_000;

/// A set of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuSet {
    /// Number of CPUs in the set.
    pub count: u32,
    /// Highest number of a CPU in the set.
    pub highest: u32,
}

/// Reads a list like `0-2,5`: for each CPU whether the list names it. `None` for an empty or malformed list.
pub fn cpus(list: &str) -> Option<Vec<bool>> {
    const MOST: usize = 8192;
    let mut present = vec![false; MOST];
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        present.get_mut(first..=last).filter(|range| !range.is_empty())?.fill(true);
    }
    Some(present)
}

/// Size and highest number of a list like `0-2,5`. `None` for an empty or malformed list.
pub fn cpu_list(list: &str) -> Option<CpuSet> {
    let present = cpus(list)?;
    let count = u32::try_from(present.iter().filter(|&&is| is).count()).ok()?;
    let highest = u32::try_from(present.iter().rposition(|&is| is)?).ok()?;
    Some(CpuSet { count, highest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        let set = |count, highest| Some(CpuSet { count, highest });
        let table = [
            ("0", set(1, 0)),
            ("0-2,5", set(4, 5)),
            ("1,1,0-1", set(2, 1)),
            (" 3 - 4 \n", set(2, 4)),
            ("", None),
            ("2-1", None),
            ("0-99999999999", None),
            ("0-8192", None),
            ("18446744073709551615", None),
            ("a", None),
            ("1,", None),
        ];
        for (list, expected) in table {
            assert_eq!(cpu_list(list), expected, "{list:?}");
        }
    }
}
