//! The device between a driver that the tests play and taps, made-up and real ones.

mod hostile;
mod lab;
mod pairs;
mod plugging;
mod real;
mod receiving;
mod several;
mod states;
mod transmitting;
