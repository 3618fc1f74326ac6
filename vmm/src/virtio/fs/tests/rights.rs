//! Whose rights count.
