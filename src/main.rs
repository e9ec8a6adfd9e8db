//! The `udirect` program.

fn main() {}
