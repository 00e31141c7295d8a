//! `hybridnorm placement`.

use std::path::Path;

use hybridnorm::Error;
use hybridnorm::placement::{self, Explanation, ModelFacts, Placement};
use serde::Serialize;

use super::Ending;
use crate::args::{AttentionKind, Format, PlacementCommand};
use crate::console::{self, Console};
use crate::table;

#[derive(Serialize)]
struct Row {
    name: &'static str,
    aliases: &'static [&'static str],
    meaning: &'static str,
    source: &'static str,
    hash: String,
}

pub fn run(command: PlacementCommand, _console: &Console) -> Result<Ending, Error> {
    match command {
        PlacementCommand::List { json } => list(json)?,
        PlacementCommand::Explain {
            name,
            layers,
            attention,
            format,
        } => explain(&name, layers, attention, format)?,
    }
    Ok(Ending::Done)
}

fn list(json: bool) -> Result<(), Error> {
    let rows = placement::names()
        .iter()
        .map(|entry| {
            Ok(Row {
                name: entry.name,
                aliases: entry.aliases,
                meaning: entry.meaning,
                source: entry.source,
                hash: placement::named(entry.name)?.hash(),
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    if json {
        return console::print_json(&rows);
    }
    let mut table = table::plain(&["name", "meaning", "source"]);
    for row in rows {
        let name = match row.aliases {
            [] => row.name.to_owned(),
            aliases => format!("{} (= {})", row.name, aliases.join(", ")),
        };
        table.add_row([name, row.meaning.to_owned(), row.source.to_owned()]);
    }
    console::print(&format!("{table}\n"))
}

fn explain(
    name: &str,
    layers: usize,
    attention: AttentionKind,
    format: Format,
) -> Result<(), Error> {
    let placement = find(name)?;
    let facts = ModelFacts {
        latent: attention == AttentionKind::Mla,
        ..ModelFacts::default()
    };
    let explanation = Explanation::new(&placement, layers, &facts)?.named(name);
    match format {
        Format::Text => console::print(&format!("{}\n", explanation.to_text().trim_end())),
        Format::Latex => console::print(&format!("{}\n", explanation.to_latex().trim_end())),
        Format::Json => console::print_json(&explanation),
    }
}

/// Finds a named placement, or reads one from a TOML file.
fn find(name: &str) -> Result<Placement, Error> {
    let path = Path::new(name);
    if path
        .extension()
        .is_some_and(|extension| extension == "toml")
    {
        return hybridnorm::train::placement_from_file(path);
    }
    Ok(placement::named(name)?)
}
