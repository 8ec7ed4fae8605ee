//! git in a large repository of the image.

use anyhow::Result;

use super::{Cache, Input, Outcome, Place, Target, Work};
use crate::ground::Layers;
use crate::image::repository::{REPOSITORY, git};

/// The works of this module.
pub(super) fn works() -> Vec<Work> {
    vec![Work {
        name: "git-status",
        title: "git status in a repository of 20,000 files, warm",
        layers: Layers::Data,
        cache: Cache::Warm,
        target: Target::Overlayfs(1.2),
        prepare: |_| Ok(Input::default()),
        run: |place, _| status(place),
        check: None,
    }]
}

/// Nothing was changed, so git has nothing to say.
fn status(place: &Place) -> Result<Outcome> {
    let said = git(&place.root.join(REPOSITORY), &["status", "--porcelain"])?;
    Ok(Outcome {
        bytes: said.len() as u64,
        ..Outcome::default()
    })
}
