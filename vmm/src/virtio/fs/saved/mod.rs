//! The device's state as plain data: its form, and how it is made and taken back.

mod format;
mod restore;
mod save;
mod walk;
