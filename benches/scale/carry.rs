//! The minimum cost of keeping a cached answer over a reload, compared with deciding again.
//!
//! The service keeps none, because no input of the answer may have changed. In the best case only
//! policies have changed, and schema and entities have not. Then the request must be bound, for its
//! ancestors, and no changed, added or removed policy may match it. This is measured here with one
//! changed policy that matches nothing. With changed entities, all entities that the answer has
//! read would also have to be compared.

use cedar_pdp::pdp::{authorize, candidates};

use crate::decide::Compared;
use crate::loaded::Loaded;
use crate::support::Sizes;
use crate::support::statistics::print_table;

const REQUESTS: usize = 20_000;

/// Valid under the data set's schema, for no existing user.
const CHANGED: &str = r#"permit (principal == User::"nobody", action, resource);"#;

pub(crate) fn measure(sizes: Sizes) -> anyhow::Result<()> {
    let requests = sizes.of(REQUESTS, 2_000);
    let mut rows = Vec::new();
    for (policies, entities) in [(12, 1_000), sizes.of((100_000, 1_000_000), (1_000, 10_000))] {
        let loaded = Loaded::new(policies, entities, requests)?;
        let changed = loaded.with_policy_alone(CHANGED)?;
        let compared = Compared::measure(
            (loaded.queries(), &|query| {
                authorize(&loaded.snapshot, query)
            }),
            (loaded.queries(), &|query| candidates(&changed, query)),
        )?;
        rows.push([
            loaded.size(),
            format!("{:.2}", compared.baseline().median()),
            format!("{:.2}", compared.subject().median()),
            compared.ratio().show(2),
        ]);
    }
    print_table(
        "an answer after a reload that changed one policy, p50 in us",
        [
            "",
            "decided again",
            "at least, to keep it",
            "x decided again",
        ],
        rows,
    );
    Ok(())
}
