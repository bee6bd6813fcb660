//! The examples of this build.

use std::path::Path;
use std::process::Command;

/// The example `name`, built from its source as it is.
pub fn example(name: &str) -> Command {
    let tests = std::env::current_exe().expect("this test's path");
    let built = tests.parent().and_then(Path::parent).expect("the build folder");
    let built = built.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(format!("{name}.rs"));
    let age = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    let fresh = age(&built) >= age(&source);
    assert!(fresh, "{} is missing or old: run cargo build --examples", built.display());
    Command::new(built)
}
