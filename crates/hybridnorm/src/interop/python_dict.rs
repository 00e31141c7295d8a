//! Parser of the one Python literal in official configurations: a dict from layers to flags.
//!
//! The official code evaluates the string; here it is parsed:
//!
//! ```text
//! config = dict, optionally enclosed in underscores       _{0: {'attn_norm': True}}_
//! dict   = { entry , ... }      entry = layers : flags
//! layers = integer | ( integer , ... )
//! flags  = { 'name' : True | False , ... }
//! ```

use std::collections::BTreeMap;

/// Flags by name for groups of layers, in the order in which they were written.
pub(super) type LayerFlags = Vec<(Vec<usize>, BTreeMap<String, bool>)>;

/// Parses the string; errors name the position and what was expected there.
pub(super) fn parse(text: &str) -> Result<LayerFlags, String> {
    let trimmed = text.trim().trim_matches('_').trim();
    if trimmed.is_empty() {
        return Ok(Vec::new());
    }
    let mut reader = Reader {
        text: trimmed,
        at: 0,
    };
    let special = reader.braced(|reader| {
        let layers = reader.layers()?;
        reader.expect(':')?;
        let flags = reader.braced(|reader| {
            let name = reader.quoted()?;
            reader.expect(':')?;
            Ok((name, reader.boolean()?))
        })?;
        Ok((layers, flags.into_iter().collect()))
    })?;
    match reader.rest() {
        "" => Ok(special),
        _ => Err(reader.problem("the end")),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start();
        self.at += rest.len() - trimmed.len();
        trimmed
    }

    fn problem(&mut self, expected: &str) -> String {
        let rest = self.rest();
        let found = match rest.chars().next() {
            Some(found) => format!("{found:?}"),
            None => "the end".into(),
        };
        format!("at byte {}: expected {expected}, found {found}", self.at)
    }

    fn accept(&mut self, token: &str) -> bool {
        let accepted = self.rest().starts_with(token);
        if accepted {
            self.at += token.len();
        }
        accepted
    }

    fn expect(&mut self, token: char) -> Result<(), String> {
        match self.accept(token.encode_utf8(&mut [0; 4])) {
            true => Ok(()),
            false => Err(self.problem(&format!("{token:?}"))),
        }
    }

    fn braced<T>(
        &mut self,
        entry: impl Fn(&mut Self) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        self.expect('{')?;
        let mut entries = Vec::new();
        while !self.accept("}") {
            if !entries.is_empty() {
                self.expect(',')?;
                if self.accept("}") {
                    break;
                }
            }
            entries.push(entry(self)?);
        }
        Ok(entries)
    }

    fn layers(&mut self) -> Result<Vec<usize>, String> {
        if !self.accept("(") {
            return Ok(vec![self.integer()?]);
        }
        let mut layers = Vec::new();
        while !self.accept(")") {
            layers.push(self.integer()?);
            if !self.accept(",") {
                self.expect(')')?;
                break;
            }
        }
        Ok(layers)
    }

    fn integer(&mut self) -> Result<usize, String> {
        let rest = self.rest();
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        match rest[..digits].parse() {
            Ok(number) => {
                self.at += digits;
                Ok(number)
            }
            Err(_) => Err(self.problem("a layer number")),
        }
    }

    fn quoted(&mut self) -> Result<String, String> {
        for quote in ['\'', '"'] {
            if self.accept(quote.encode_utf8(&mut [0; 4])) {
                let rest = &self.text[self.at..];
                let Some(end) = rest.find(quote) else {
                    return Err(self.problem(&format!("a closing {quote:?}")));
                };
                self.at += end + 1;
                return Ok(rest[..end].to_owned());
            }
        }
        Err(self.problem("a quoted name"))
    }

    fn boolean(&mut self) -> Result<bool, String> {
        match (self.accept("True"), self.accept("False")) {
            (true, _) => Ok(true),
            (_, true) => Ok(false),
            _ => Err(self.problem("True or False")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_config_of_hybridnorm_star() {
        let special = parse("_{0:{'attn_norm':True,'ffn_residual':False}}_").unwrap();
        let flags = BTreeMap::from([
            ("attn_norm".to_owned(), true),
            ("ffn_residual".to_owned(), false),
        ]);
        assert_eq!(special, [(vec![0], flags)]);
    }

    #[test]
    fn reads_tuples_spaces_and_trailing_commas() {
        let special = parse(r#" { (0, 1 ,2,): { "ffn_norm" : False, }, 5: {} } "#).unwrap();
        assert_eq!(special[0].0, [0, 1, 2]);
        assert!(!special[0].1["ffn_norm"]);
        assert_eq!(special[1], (vec![5], BTreeMap::new()));
    }

    #[test]
    fn empty_text_has_no_flags() {
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(parse("__").unwrap(), []);
    }

    #[test]
    fn errors_name_the_expected_token() {
        for (text, expected) in [
            ("{0:{'a':1}}", "True or False"),
            ("{x:{}}", "a layer number"),
            ("{0:{a:True}}", "a quoted name"),
            ("{0:{}} __import__('os')", "the end"),
            ("{0:{'a", "a closing"),
            ("{99999999999999999999999:{}}", "a layer number"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[_{}():,'\"0-9TrueFals é]*") {
            let _ = parse(&text);
        }
    }
}
