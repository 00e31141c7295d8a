//! `hybridnorm placement`.

use std::path::Path;

use hybridnorm::Error;
use hybridnorm::placement::{self, Explanation, ModelFacts, Placement};
use serde::Serialize;

use super::Outcome;
use crate::args::{
    AttentionKind, ExplainFormat, PlacementCommand, PlacementExplainArgs, PlacementListArgs,
};
use crate::console;
use crate::table;

#[derive(Serialize)]
struct Row {
    name: &'static str,
    aliases: &'static [&'static str],
    #[serde(rename = "meaning")]
    description: &'static str,
    source: &'static str,
    hash: String,
}

pub fn run(command: PlacementCommand) -> Result<Outcome, Error> {
    match command {
        PlacementCommand::List(args) => list(&args)?,
        PlacementCommand::Explain(args) => explain(&args)?,
    }
    Ok(Outcome::Completed)
}

fn list(args: &PlacementListArgs) -> Result<(), Error> {
    let rows = placement::named_placements()
        .iter()
        .map(|entry| {
            Ok(Row {
                name: entry.name,
                aliases: entry.aliases,
                description: entry.description,
                source: entry.source,
                hash: placement::named(entry.name)?.hash(),
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    args.output.print(&rows, |rows| table_of(rows))
}

fn table_of(rows: &[Row]) -> String {
    let mut table = table::text_table(&["name", "description", "source"]);
    for row in rows {
        let name = match row.aliases {
            [] => row.name.to_owned(),
            aliases => format!("{} (= {})", row.name, aliases.join(", ")),
        };
        table.add_row([name, row.description.to_owned(), row.source.to_owned()]);
    }
    format!("{table}\n")
}

fn explain(args: &PlacementExplainArgs) -> Result<(), Error> {
    let placement = find(&args.name)?;
    let facts = ModelFacts {
        is_latent_attention: args.attention == AttentionKind::Mla,
        ..ModelFacts::default()
    };
    let explanation = Explanation::new(&placement, args.layers, &facts)?.named(&args.name);
    match args.format {
        ExplainFormat::Text => console::print(&format!("{}\n", explanation.to_text().trim_end())),
        ExplainFormat::Latex => console::print(&format!("{}\n", explanation.to_latex().trim_end())),
        ExplainFormat::Json => console::print_json(&explanation),
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
