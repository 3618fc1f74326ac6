//! `runvm ps`

mod columns;
mod options;

use std::time::{Duration, SystemTime};

use anyhow::bail;
use protocol::ListProcessesResponse;

use crate::cli::{Global, ListFormat, PsArgs};
use crate::control::{self, Reply, Request};
use crate::state::{Dir, Life};
use columns::{Column, Now};

/// Time for the monitor's answer: the guest only reads its /proc.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lists the processes of a container.
///
/// As JSON the list is for engines, which look pids up with the host's ps(1): it has the monitor's pid, since the whole container
/// lives in that process. As a table it is the guest's view, with pids as in the container.
pub fn run(global: &Global, args: &PsArgs) -> anyhow::Result<u8> {
    let dir = Dir::open(&global.root(), &args.id)?;
    let state = dir.state()?;
    if state.life() != Life::Alive {
        bail!("container not running");
    }
    if args.format == ListFormat::Json {
        println!("{}", serde_json::to_string(&[state.pid])?);
        return Ok(0);
    }
    let columns = options::columns(&args.options)?;
    let Reply::Processes(list) = control::call(dir.path(), &Request::Processes, PATIENCE)? else {
        bail!("unexpected reply from the container's monitor: not a list of processes");
    };
    print!("{}", table(&columns, list));
    Ok(0)
}

/// The table of every column that there is.
#[cfg(feature = "fuzz")]
pub fn full_table(list: ListProcessesResponse) -> String {
    table(&columns::all(), list)
}

fn table(columns: &[&Column], mut list: ListProcessesResponse) -> String {
    list.processes.sort_by_key(|process| process.pid);
    let now = Now { uptime: list.uptime, memory: list.memory, time: SystemTime::now() };
    let mut rows = vec![columns.iter().map(|column| column.header.to_owned()).collect::<Vec<_>>()];
    rows.extend(
        list.processes.iter().map(|process| columns.iter().map(|column| (column.value)(process, &now)).collect()),
    );
    let width = |index: usize| rows.iter().map(|row| row[index].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(|index| width(index).max(columns[index].width)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(columns).zip(&widths).map(|((cell, column), width)| match column.right {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        format!("{}\n", cells.collect::<Vec<_>>().join(" ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::ProcessEntry;

    #[test]
    fn a_table_is_sorted_and_aligned() {
        let process = |pid, args: &str| ProcessEntry { pid, uid: 4_000_000, args: args.into(), ..Default::default() };
        let list = ListProcessesResponse { processes: vec![process(12, "b c"), process(1, "a")], ..Default::default() };
        let columns = options::columns(&["-o".into(), "uid,pid,args".into()]).unwrap();
        assert_eq!(table(&columns, list), "    UID     PID COMMAND\n4000000       1 a\n4000000      12 b c\n");
    }
}
