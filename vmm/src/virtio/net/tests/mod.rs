//! The device between a driver that the tests play and taps, made-up and real ones.

mod hostile;
mod lab;
mod real;
mod receiving;
mod states;
mod taps;
mod threaded;
mod transmitting;
