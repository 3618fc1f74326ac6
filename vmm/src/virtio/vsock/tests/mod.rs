//! Tests with a fake driver on the rings.
