use super::*;

fn text(name: &str) -> String {
    Explanation::of(&get(name)).unwrap().named(name).to_text()
}

/// Asserts that the text holds these lines, up to leading space.
fn says(name: &str, lines: &[&str]) {
    let text = text(name);
    let have: Vec<&str> = text.lines().map(str::trim).collect();
    for line in lines {
        assert!(
            have.contains(line),
            "{name} does not say\n{line}\nbut\n{text}"
        );
    }
}

#[test]
fn scratch() {
    for n in names() {
        println!("{}", text(n.name));
    }
    println!(
        "{}",
        Explanation::of(&get("hybridnorm-7b")).unwrap().to_latex()
    );
    println!("{}", toml::to_string(&get("hybridnorm-star")).unwrap());
    for n in names() {
        println!("    (\"{}\", \"{}\"),", n.name, n.placement().hash());
    }
}
