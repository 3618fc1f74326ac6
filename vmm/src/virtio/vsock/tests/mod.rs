//! Tests with a fake driver on the rings and a guest that keeps or breaks the rules.

mod bulk;
mod connections;
mod hostile;
mod lab;
mod lifecycle;
mod states;
