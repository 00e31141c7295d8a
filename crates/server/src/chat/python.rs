//! Functions of chat templates with the results that they have in Python.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Maximum number of digits of a number in the argument of `str.format`.
const MAX_WIDTH_DIGITS: usize = 4;
/// Maximum indent of JSON.
const MAX_INDENT: usize = 64;
/// Maximum depth of a value in JSON.
const MAX_DEPTH: usize = 64;
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// Methods of strings, lists and dictionaries. A width of `str.format`, which takes memory without a count against the
/// limit of the template, is limited.
///
/// # Errors
/// If there is no such method, it fails, or the template exceeds its limit.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let has_wide_field = |text: &str| {
        text.split(|c: char| !c.is_ascii_digit())
            .any(|digits| digits.len() > MAX_WIDTH_DIGITS)
    };
    match (value.as_str(), name, args) {
        (Some(text), "format", _) if has_wide_field(text) => Err(invalid(format!(
            "a width of `format` of more than {MAX_WIDTH_DIGITS} digits"
        ))),
        (Some(separator), "join", [items]) => join(state, separator, items).map(Value::from),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Joins items. The method of `pycompat` does not count them against the limit of the template.
fn join(state: &State, separator: &str, items: &Value) -> Result<String, Error> {
    let mut out = String::new();
    for (i, item) in items.try_iter()?.enumerate() {
        let start = out.len();
        if i > 0 {
            out.push_str(separator);
        }
        let _ = write!(out, "{item}");
        state.consume_fuel(1 + ((out.len() - start) / 64) as u64)?;
    }
    Ok(out)
}

/// Formats the current time, in UTC, as `datetime.strftime` does.
///
/// # Errors
/// If a directive is unknown.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    strftime(format, now.unwrap_or_default().as_secs())
}

/// Formats a time in seconds since 1970.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day, day_of_year) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let month_name = MONTHS[month as usize];
    let weekday = WEEKDAYS[(days % 7) as usize];
    let hour_of_12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let is_padded = directive != Some('-');
        if !is_padded {
            directive = chars.next();
        }
        let mut number = |value: u64, width: usize| {
            let width = if is_padded { width } else { 1 };
            let _ = write!(out, "{value:0width$}");
        };
        match directive {
            Some('d') => number(day, 2),
            Some('m') => number(month + 1, 2),
            Some('y') => number(year % 100, 2),
            Some('Y') => number(year, 4),
            Some('j') => number(day_of_year + 1, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(hour_of_12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('e') => {
                let _ = write!(out, "{day:2}");
            }
            Some('F') => {
                let _ = write!(out, "{year:04}-{:02}-{day:02}", month + 1);
            }
            Some('T') => {
                let _ = write!(out, "{hour:02}:{minute:02}:{second:02}");
            }
            Some('Z') => out.push_str("UTC"),
            Some('%') => out.push('%'),
            _ => {
                let found: String = directive.into_iter().collect();
                return Err(invalid(format!(
                    "strftime_now: `%{found}` is not supported"
                )));
            }
        }
    }
    Ok(out)
}

/// Returns year, month, day of the month, and day of the year, month and day of the year from 0.
fn date(mut days: u64) -> (u64, u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let day_of_year = days;
    let lengths = [
        31,
        28 + u64::from(is_leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as u64, days + 1, day_of_year)
}

/// The filter `tojson` of `transformers`: `json.dumps` without escapes for HTML.
///
/// # Errors
/// If the value cannot be written, or an argument is unknown.
pub(super) fn to_json(
    state: &State,
    value: &Value,
    indent: Option<Value>,
    args: Kwargs,
) -> Result<String, Error> {
    let indent = match indent {
        None => args.get::<Option<Value>>("indent")?,
        indent => indent,
    };
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => {
            let width = usize::try_from(indent).ok();
            let width = width.filter(|width| *width <= MAX_INDENT);
            Some(width.ok_or_else(|| {
                invalid(format!(
                    "an indent of `tojson` above {MAX_INDENT}, or no number"
                ))
            })?)
        }
    };
    let separators = args.get::<Option<Vec<String>>>("separators")?;
    let default = if indent.is_some() { "," } else { ", " };
    let separators = separators.unwrap_or_else(|| vec![default.into(), ": ".into()]);
    let [item, key] = separators
        .try_into()
        .map_err(|_| invalid("tojson: expected two separators".into()))?;
    let mut writer = JsonWriter {
        state,
        indent,
        item,
        key,
        is_ascii: args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorts_keys: args.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        out: String::new(),
        paid: 0,
    };
    args.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(writer.out)
}

fn invalid(problem: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

struct JsonWriter<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    indent: Option<usize>,
    /// Separator of items, and of keys and values.
    item: String,
    key: String,
    is_ascii: bool,
    sorts_keys: bool,
    out: String,
    /// Bytes that were counted against the limit of the template.
    paid: usize,
}

impl JsonWriter<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!(
                "tojson: a value of more than {MAX_DEPTH} levels"
            )));
        }
        self.state
            .consume_fuel(1 + ((self.out.len() - self.paid) / 64) as u64)?;
        self.paid = self.out.len();
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            // Not collected: a sequence can be longer than what was paid for.
            ValueKind::Seq | ValueKind::Iterable => {
                let write = |writer: &mut Self, item| writer.value(&item, depth + 1);
                self.container(['[', ']'], value.try_iter()?, depth, write)?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorts_keys {
                    keys.sort();
                }
                self.container(['{', '}'], keys, depth, |writer, key| {
                    match key.as_str() {
                        Some(text) => writer.string(text),
                        None => writer.string(&key.to_string()),
                    }
                    let separator = std::mem::take(&mut writer.key);
                    writer.out.push_str(&separator);
                    writer.key = separator;
                    writer.value(&value.get_item(&key)?, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("tojson: {kind} cannot be written as JSON"))),
        }
        Ok(())
    }

    fn container(
        &mut self,
        [open, close]: [char; 2],
        items: impl IntoIterator<Item = Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let mut is_empty = true;
        for item in items {
            if !std::mem::replace(&mut is_empty, false) {
                let separator = std::mem::take(&mut self.item);
                self.out.push_str(&separator);
                self.item = separator;
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !is_empty {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    /// Begins a line, if the JSON is indented.
    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            let width = depth * indent;
            let _ = write!(self.out, "\n{:width$}", "");
        }
    }

    fn string(&mut self, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.is_ascii {
            self.out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            match c.is_ascii() {
                true => self.out.push(c),
                false => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn times_are_formatted_as_in_python() {
        // datetime(2024, 2, 29, 0, 5, 9), datetime(2100, 12, 31, 23, 59, 59).
        let [leap, last] = [1_709_165_109, 4_133_980_799];
        let all = "%a %A %d %-d %e|%b %B %m %-m|%y %Y %j|%H %-H %I %M %S %p|%F %T %%";
        assert_eq!(
            strftime(all, leap).unwrap(),
            "Thu Thursday 29 29 29|Feb February 02 2|24 2024 060|00 0 12 05 09 AM|2024-02-29 00:05:09 %"
        );
        assert_eq!(
            strftime(all, last).unwrap(),
            "Fri Friday 31 31 31|Dec December 12 12|00 2100 365|23 23 11 59 59 PM|2100-12-31 23:59:59 %"
        );
        assert_eq!(strftime("%d %b %Y", 0).unwrap(), "01 Jan 1970");
        for unknown in ["%", "%-", "%Q"] {
            assert!(
                strftime(unknown, 0)
                    .unwrap_err()
                    .to_string()
                    .contains("is not supported")
            );
        }
    }
}
