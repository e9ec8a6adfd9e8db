//! The capabilities that both sides of vfio-user tell each other: a small JSON object behind the version.
//!
//! [`Capabilities`] are the numbers that matter here; others are read over. The reader knows all of JSON, since what a
//! peer may say beside them is open, and keeps nothing. The invariant: it ends, however deep the text is nested.
#![forbid(unsafe_code)]

use super::wire::Malformed;

/// What one side can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Descriptors beside one message.
    pub max_msg_fds: u64,
    /// Bytes of one read or write of a region.
    pub max_data_xfer_size: u64,
    /// Pieces of memory that are mapped at one time.
    pub max_dma_maps: u64,
}

impl Default for Capabilities {
    /// What a side has that says nothing.
    fn default() -> Self {
        Self { max_msg_fds: 1, max_data_xfer_size: 1 << 20, max_dma_maps: 65_535 }
    }
}

impl Capabilities {
    /// Writes them, with the zero that ends the text.
    pub fn to_bytes(self) -> Vec<u8> {
        let Self { max_msg_fds, max_data_xfer_size, max_dma_maps } = self;
        format!(
            "{{\"capabilities\":{{\"max_msg_fds\":{max_msg_fds},\"max_data_xfer_size\":{max_data_xfer_size},\
             \"max_dma_maps\":{max_dma_maps},\"pgsizes\":4096}}}}\0"
        )
        .into_bytes()
    }

    /// Reads them; nothing at all is what a side says that has the least.
    ///
    /// # Errors
    ///
    /// When it is not JSON, or not what it should be.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let text = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        let mut found = Self::default();
        if text.is_empty() {
            return Ok(found);
        }
        let mut reader = Reader { text, at: 0 };
        reader.object(0, &mut |reader, name| match name {
            b"capabilities" => reader.object(1, &mut |reader, name| found.take(reader, name)),
            _ => reader.skip(1),
        })?;
        reader.blanks();
        if reader.at == text.len() { Ok(found) } else { Err(NOT_JSON) }
    }

    fn take(&mut self, reader: &mut Reader<'_>, name: &[u8]) -> Result<(), Malformed> {
        let place = match name {
            b"max_msg_fds" => &mut self.max_msg_fds,
            b"max_data_xfer_size" => &mut self.max_data_xfer_size,
            b"max_dma_maps" => &mut self.max_dma_maps,
            _ => return reader.skip(2),
        };
        *place = reader.count()?;
        Ok(())
    }
}

const NOT_JSON: Malformed = Malformed("capabilities that are no JSON");

/// How deep values may be nested.
const DEPTH_MAX: u32 = 16;

/// A place in a JSON text.
struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

/// What is done with the value behind a name.
type Member<'m, 'a> = &'m mut dyn FnMut(&mut Reader<'a>, &[u8]) -> Result<(), Malformed>;

impl<'a> Reader<'a> {
    fn blanks(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Looks at what comes next.
    fn next(&mut self) -> Option<u8> {
        self.blanks();
        self.text.get(self.at).copied()
    }

    /// Steps over `byte`, if it comes next.
    fn steps_over(&mut self, byte: u8) -> bool {
        let is_next = self.next() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.steps_over(byte) { Ok(()) } else { Err(NOT_JSON) }
    }

    /// Reads an object, each value of it by `member`.
    fn object(&mut self, depth: u32, member: Member<'_, 'a>) -> Result<(), Malformed> {
        if depth > DEPTH_MAX {
            return Err(Malformed("capabilities that are nested too deep"));
        }
        self.expect(b'{')?;
        if self.steps_over(b'}') {
            return Ok(());
        }
        loop {
            let name = self.string()?;
            self.expect(b':')?;
            member(self, name)?;
            if !self.steps_over(b',') {
                return self.expect(b'}');
            }
        }
    }

    fn array(&mut self, depth: u32) -> Result<(), Malformed> {
        if depth > DEPTH_MAX {
            return Err(Malformed("capabilities that are nested too deep"));
        }
        self.expect(b'[')?;
        if self.steps_over(b']') {
            return Ok(());
        }
        loop {
            self.skip(depth + 1)?;
            if !self.steps_over(b',') {
                return self.expect(b']');
            }
        }
    }

    /// Reads a string as it is written: no name of ours has an escape.
    fn string(&mut self) -> Result<&'a [u8], Malformed> {
        self.expect(b'"')?;
        let begin = self.at;
        loop {
            match self.text.get(self.at) {
                None | Some(0..=0x1f) => return Err(NOT_JSON),
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
            }
        }
        let string = &self.text[begin..self.at];
        self.at += 1;
        Ok(string)
    }

    /// Steps over a value of any kind.
    fn skip(&mut self, depth: u32) -> Result<(), Malformed> {
        match self.next() {
            Some(b'{') => self.object(depth, &mut |reader, _| reader.skip(depth + 1)),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(|_| ()),
            _ => self.word().map(|_| ()),
        }
    }

    /// Reads a number, `true`, `false` or `null`.
    fn word(&mut self) -> Result<&'a str, Malformed> {
        self.blanks();
        let begin = self.at;
        while matches!(
            self.text.get(self.at),
            Some(b'+' | b'-' | b'.' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z')
        ) {
            self.at += 1;
        }
        let word = core::str::from_utf8(&self.text[begin..self.at]).map_err(|_| NOT_JSON)?;
        let is_name = matches!(word, "true" | "false" | "null");
        if is_name || word.parse::<f64>().is_ok_and(f64::is_finite) {
            Ok(word)
        } else {
            Err(NOT_JSON)
        }
    }

    /// Reads a number that counts something.
    fn count(&mut self) -> Result<u64, Malformed> {
        self.word()?.parse().map_err(|_| Malformed("a capability that is no count"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    fn read(text: &str) -> Result<Capabilities, Malformed> {
        Capabilities::from_bytes(text.as_bytes())
    }

    #[test]
    fn what_is_written_is_read() {
        let all = Capabilities { max_msg_fds: 8, max_data_xfer_size: 4096, max_dma_maps: 3 };
        assert_eq!(Capabilities::from_bytes(&all.to_bytes()), Ok(all));
        assert_eq!(all.to_bytes().last(), Some(&0));
    }

    #[test]
    fn what_is_left_out_is_the_least_and_what_is_unknown_is_read_over() {
        assert_eq!(read(""), Ok(Capabilities::default()));
        assert_eq!(read("\0"), Ok(Capabilities::default()));
        assert_eq!(read(" { } "), Ok(Capabilities::default()));
        let text = r#"{"a": [1, {"b": null}, "c\"}"], "capabilities" : {
            "migration": {"pgsize": 4096, "max_bitmap_size": 1e3}, "max_msg_fds": 2, "write_multiple": true
        }, "capability": -1.5}"#;
        let two = Capabilities { max_msg_fds: 2, ..Capabilities::default() };
        assert_eq!(read(text), Ok(two));
    }

    #[test]
    fn what_is_no_json_or_no_count_is_refused() {
        for text in
            ["{", "[]", "{}x", r#"{"a":}"#, r#"{"a":1,}"#, r#"{"a" 1}"#, r#"{"a":tru}"#, r#"{"a":"#]
        {
            assert_eq!(read(text), Err(NOT_JSON), "{text}");
        }
        for value in ["-1", "1.5", "true", "99999999999999999999"] {
            let text = format!(r#"{{"capabilities":{{"max_msg_fds":{value}}}}}"#);
            assert_eq!(read(&text), Err(Malformed("a capability that is no count")), "{text}");
        }
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read(&deep), Err(Malformed("capabilities that are nested too deep")));
    }

    #[test]
    fn the_reader_ends_whatever_it_is_given() {
        let mut random = Seed::from_env("capabilities");
        let whole = Capabilities::default().to_bytes();
        let mut refused = 0;
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = *random.choice(b"{}[]\",:\\0a \0\xff").expect("there are some");
            }
            refused += u32::from(Capabilities::from_bytes(&bytes).is_err());
        }
        assert!(refused > 1000, "{refused}");
    }
}
