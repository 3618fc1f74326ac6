//! Says whether this host's KVM runs kernels.

fn main() {
    match vmm::probe::ring0() {
        Ok(report) => println!("{report:?}"),
        Err(error) => println!("{error}"),
    }
}
