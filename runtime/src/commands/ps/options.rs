//! Options of ps(1) that `runvm ps` understands.

use anyhow::{Context, bail};

use super::columns::{Column, find};

/// Columns of `ps -ef`.
const FULL: &str = "user,pid,ppid,c,stime,tty,time,cmd";
/// Columns of `ps aux`.
const USER: &str = "user,pid,%cpu,%mem,vsz,rss,tty,stat,start,time,command";

/// Columns that options ask for.
pub fn columns(options: &[String]) -> anyhow::Result<Vec<&'static Column>> {
    let mut names = None;
    let mut words = options.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if let Some(list) = word.strip_prefix("--format") {
            let list = list.strip_prefix('=').or_else(|| words.next()).context("--format needs a list of columns")?;
            names = Some(list);
            continue;
        }
        let letters = word.strip_prefix('-').unwrap_or(word);
        for (at, letter) in letters.char_indices() {
            match letter {
                // Which processes: it is all of the container's in any case.
                'e' | 'A' | 'a' | 'x' | 'w' => {}
                'f' => names = names.or(Some(FULL)),
                'u' => names = names.or(Some(USER)),
                'o' => {
                    let rest = Some(&letters[at + 1..]).filter(|rest| !rest.is_empty());
                    names = Some(rest.or_else(|| words.next()).context("ps -o needs a list of columns")?);
                    break;
                }
                _ => bail!(
                    "unsupported ps option {word:?}: for the guest's processes there are -e, -f, a, u, x and -o \
                     COLUMN,…"
                ),
            }
        }
    }
    let names = names.unwrap_or(FULL).split(',');
    names.map(|name| find(name).with_context(|| format!("unknown ps column {name:?}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(options: &[&str]) -> Result<String, String> {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        match columns(&options) {
            Ok(columns) => Ok(columns.iter().map(|column| column.header).collect::<Vec<_>>().join(" ")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn options_name_columns() {
        let full = "UID PID PPID C STIME TTY TIME CMD";
        let user = "UID PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND";
        for (options, wanted) in [
            (&[][..], full),
            (&["-ef"], full),
            (&["-e", "-f"], full),
            (&["aux"], user),
            (&["-o", "pid,comm"], "PID COMMAND"),
            (&["-eopid"], "PID"),
            (&["--format=pid,args"], "PID COMMAND"),
        ] {
            assert_eq!(headers(options).as_deref(), Ok(wanted), "{options:?}");
        }
        for options in [&["-o"][..], &["-o", "pid,nonsense"], &["-Z"], &["--forest"], &["--format"], &["é"]] {
            headers(options).unwrap_err();
        }
    }
}
