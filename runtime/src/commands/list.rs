//! `runvm list`

use crate::cli::{Global, ListArgs, ListFormat};
use crate::state::{self, State, Status};
use crate::status;

/// Lists the containers under `--root`.
pub fn run(global: &Global, args: &ListArgs) -> anyhow::Result<u8> {
    let states = state::all(&global.root())?;
    if args.quiet {
        states.iter().for_each(|state| println!("{}", state.id));
        return Ok(0);
    }
    let statuses = status::of_all(&global.root(), &states);
    if args.format == ListFormat::Json {
        let values: Vec<_> = states.iter().zip(statuses).map(|(state, status)| state.for_people(status)).collect();
        println!("{}", serde_json::to_string(&values)?);
    } else {
        print!("{}", table(&states, &statuses));
    }
    Ok(0)
}

fn table(states: &[State], statuses: &[Status]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let row = |(state, status): (&State, &Status)| {
        let State { id, created, owner, .. } = state;
        let pid = if *status == Status::Stopped { 0 } else { state.pid };
        let (status, bundle) = (status.as_str().to_owned(), state.bundle.display().to_string());
        [id.clone(), pid.to_string(), status, bundle, created.clone(), owner.clone()]
    };
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(states.iter().zip(statuses).map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(9) + 3;
    let widths: Vec<usize> = (0..6).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.trim_end())
    };
    rows.iter().map(line).collect()
}
