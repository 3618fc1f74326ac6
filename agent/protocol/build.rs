//! Generates the message types and the ttrpc service from `proto/agent.proto`.
//!
//! Generated files start with inner attributes, which `include!` refuses inside a module: so they
//! are written next to a `mod.rs` in `OUT_DIR` and taken in by `#[path]`-like inclusion of that file.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=proto/agent.proto");
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto"])
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    let module = |name: &str| format!("#[path = {:?}]\npub mod {name};\n", out.join(format!("{name}.rs")));
    std::fs::write(out.join("generated.rs"), module("agent") + &module("agent_ttrpc"))?;
    Ok(())
}
