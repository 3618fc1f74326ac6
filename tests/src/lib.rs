//! Black-box tests of runvm.
