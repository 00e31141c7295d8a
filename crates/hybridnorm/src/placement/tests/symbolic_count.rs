use super::*;

fn text(name: &str, count: fn(&ResolvedBlock, &NormSpec) -> SymbolicCount) -> String {
    let r = resolve(&get(name), 12, 64).unwrap();
    count(r.blocks.last().unwrap(), &r.norm).to_string()
}

fn elements(name: &str) -> String {
    text(name, |block, _| SymbolicCount::normalized_elements(block))
}

fn parameters(name: &str) -> String {
    text(name, SymbolicCount::norm_parameters)
}

#[test]
fn norm_parameters_per_block() {
    for (name, expected) in [
        ("pre-norm", "2d"),
        ("hybridnorm", "d + 3·hd"),
        ("qkvc-post", "d + 4·hd"),
        ("olmo2", "2d + h·hd + kv·hd"),
        ("sandwich", "4d"),
        ("nanochat", "0"),
        ("rezero", "0"),
        ("gemma3n", "4d + 2·hd"),
        ("swin-v2-res-post", "4d"),
        ("sub-ln", "2d + h·hd + f"),
        ("simple-norm", "2d + h·hd + 2·kv·hd + 2f"),
        ("dyt", "2d + 2"),
        ("derf", "4d + 4"),
        ("gpt-j-parallel", "d"),
    ] {
        assert_eq!(parameters(name), expected, "{name}");
    }
}

#[test]
fn normalized_elements_per_token() {
    assert_eq!(elements("pre-norm"), "2d");
    assert_eq!(elements("hybridnorm"), "d + h·hd + 2·kv·hd");
    assert_eq!(elements("rezero"), "0");
}

#[test]
fn learned_scales_per_block() {
    let learned = |name| text(name, |block, _| SymbolicCount::learned_scales(block));
    assert_eq!(learned("pre-norm"), "0");
    assert_eq!(learned("layerscale"), "2d");
    assert_eq!(learned("rezero"), "2");
    assert_eq!(learned("normformer"), "d + h");
    assert_eq!(learned("swin-v2-res-post"), "h");
}

#[test]
fn counts_at_the_paper_shape() {
    let sizes = ModelSizes {
        d: 2048,
        hd: 64,
        h: 32,
        kv: 8,
        f: 8192,
        ..ModelSizes::default()
    };
    let r = resolve(&get("hybridnorm"), 16, 2048).unwrap();
    assert_eq!(
        SymbolicCount::norm_parameters(&r.blocks[0], &r.norm).evaluate(sizes),
        2240
    );
    assert_eq!(
        SymbolicCount::normalized_elements(&r.blocks[0]).evaluate(sizes),
        5120
    );
    let r = resolve(&get("pre-norm"), 16, 2048).unwrap();
    assert_eq!(
        SymbolicCount::norm_parameters(&r.blocks[0], &r.norm).evaluate(sizes),
        4096
    );
}
