//! NVMe as written: registers, commands, completions, identify structures, log pages, features.
//!
//! Layouts and names, no verbs. The driver and the software controller both read this room and share
//! nothing else, so that agreement between them means something. Clauses are those of the NVM Express
//! Base Specification 2.0 ("Base") and the NVM Command Set Specification 1.0 ("NVM").
//!
//! Codes that come from the other side of the wire are open enums: an unknown value survives a
//! round trip and prints as a number.
#![forbid(unsafe_code)]

#[cfg(not(target_endian = "little"))]
compile_error!(
    "NVMe is little-endian on the wire, and queue entries are read as native integers here"
);

/// Makes a newtype over an integer with named values, of which there may be others.
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        pub struct $name:ident($repr:ty) {
            $( $(#[$variant_meta:meta])* $variant:ident = $value:literal => $text:literal, )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub $repr);

        impl $name {
            $( $(#[$variant_meta])* pub const $variant: Self = Self($value); )+

            /// Returns the name in the standard's words, or `None` for a value that it does not name.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $( $value => Some($text), )+
                    _ => None,
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{:#x}", self.0),
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

pub mod command;
pub mod completion;
pub mod erase;
pub mod event;
pub mod feature;
pub mod identify;
pub mod log;
pub mod registers;
pub mod sgl;
pub mod status;

/// Bytes of one PRP entry (Base 4.1.1).
pub const PRP_ENTRY_BYTES: usize = 8;

/// The least memory page, of which CAP.MPSMIN counts in powers of two (Base 3.1.3.1).
pub const PAGE_BYTES_MIN: u32 = 4096;
