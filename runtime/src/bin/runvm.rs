//! The program: all of it is in the library, where a fuzzer reaches it, too.

use std::process::ExitCode;

fn main() -> ExitCode {
    runvm::main()
}
