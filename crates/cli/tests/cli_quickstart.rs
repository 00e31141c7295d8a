//! The quickstart of the README.

mod common;

use common::TestDir;

/// Tolerance in nats: other machines sum in another order, which depends on their vector width, and training
/// amplifies the last bits to about this much.
const TOLERANCE: f64 = 0.005;

/// Returns the rows of the first table of losses in a text: name and validation loss in nats.
fn losses(text: &str) -> Vec<(&str, f64)> {
    let lines = text.lines();
    let table = lines.skip_while(|line| !line.contains("validation loss (nats)"));
    let rows = table.take_while(|line| !line.ends_with("generates:"));
    rows.filter_map(|row| {
        let (name, rest) = row.trim().split_once("  ")?;
        let loss = rest.split_whitespace().next()?;
        Some((name, loss.parse().ok()?))
    })
    .collect()
}

#[test]
#[ignore = "trains for two minutes on books that npm fetches"]
fn readme_shows_the_output_of_quickstart() {
    let printed = TestDir::new().ok(&["quickstart", "--quiet"]);
    let title = printed.lines().next().unwrap();
    assert!(
        include_str!("../../../README.md").contains(title),
        "{title}"
    );
    let (found, expected) = (losses(&printed), losses(include_str!("../../../README.md")));
    let names = |rows: &[(&str, f64)]| {
        rows.iter()
            .map(|(name, _)| name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(&found),
        ["hybridnorm-star", "pre-norm", "unigram baseline"]
    );
    assert_eq!(names(&found), names(&expected));
    for ((name, found), (_, expected)) in found.iter().zip(&expected) {
        let difference = (found - expected).abs();
        assert!(
            difference <= TOLERANCE,
            "{name}: {found}, README {expected}"
        );
    }
}
