//! Relations between packages: written again they are the same, and a bound is met by what meets it.
#![no_main]

use imgbuild::debian::relation::{Operator, parse, shown};
use imgbuild_fuzz::text;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(groups) = parse(text(data)) else { return };
    let written = groups.iter().map(|group| shown(group)).collect::<Vec<_>>().join(", ");
    assert_eq!(parse(&written).expect("it reads what it writes"), groups, "{written}");
    for atom in groups.iter().flatten() {
        let Some((operator, bound)) = atom.version else {
            assert!(atom.fits("1") && atom.fits_provided(None));
            continue;
        };
        let meets_itself = matches!(operator, Operator::Equal | Operator::EarlierOrEqual | Operator::LaterOrEqual);
        assert_eq!(atom.fits(bound), meets_itself, "{atom}");
        assert_eq!(atom.fits_provided(Some(bound)), meets_itself);
        assert!(!atom.fits_provided(None));
        // The opposite of an operator.
        let opposite = match operator {
            Operator::Earlier => Operator::LaterOrEqual,
            Operator::EarlierOrEqual => Operator::Later,
            Operator::LaterOrEqual => Operator::Earlier,
            Operator::Later => Operator::EarlierOrEqual,
            Operator::Equal => continue,
        };
        for version in ["1", "1~", "0:1-1", "2:9+b1"] {
            assert_ne!(operator.holds(version, bound), opposite.holds(version, bound));
        }
    }
});
