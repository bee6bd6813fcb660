//! Test: kernels are where the entry points look for them.

use super::Cuda;
use super::cudarc::cublas::CudaBlas;
use super::cudarc::driver::CudaContext;
use std::path::Path;
use std::sync::Arc;

/// Source and name in each call of `kernel` that has both in quotes. A name that is chosen among several
/// is not found like that; the tests of its kernels look it up.
fn named(text: &str) -> Vec<(&str, &str)> {
    fn names(call: &str) -> Option<(&str, &str)> {
        let mut quoted = call.split_once(')').map_or("", |(arguments, _)| arguments).split('"');
        let (before, source, between, name) =
            (quoted.next()?, quoted.next()?, quoted.next()?, quoted.next()?);
        (before.trim().is_empty() && between.trim() == ",").then_some((source, name))
    }
    text.split(".kernel(").skip(1).filter_map(names).collect()
}

#[test]
fn kernels_are_where_they_are_looked_for() {
    let context = match super::between_recordings(|| CudaContext::new(0)) {
        Ok(context) => context,
        Err(error) => {
            assert!(std::env::var_os("REQUIRE_CUDA").is_none(), "no CUDA device: {error}");
            return eprintln!("NOT TESTED: this machine has no CUDA device: {error}");
        }
    };
    let stream = super::between_recordings(|| context.new_stream()).unwrap();
    let blas = Arc::new(CudaBlas::new(stream.clone()).unwrap());
    let cuda = Cuda::new(stream, blas).unwrap();
    let mut count = 0;
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda");
    for file in std::fs::read_dir(here).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = String::leak(std::fs::read_to_string(&path).unwrap());
        for (source, name) in named(text) {
            let elsewhere = if source == "topk" { "embedding" } else { "topk" };
            assert!(cuda.kernel(elsewhere, name).is_err(), "{name} is in {elsewhere}.cu, too");
            assert!(cuda.kernel(source, name).is_ok(), "{name} is not in {source}.cu");
            count += 1;
        }
    }
    assert!(count >= 10, "{count} kernels were looked for");
    let missing = ["no_source", "topk"].map(|source| cuda.kernel(source, "no_kernel").is_err());
    assert_eq!(missing, [true, true]);
}
