//! A store that several caches share.

use std::sync::Arc;
use tidings::store::{BoxFuture, Connected, Namespace, Store, StoreResult};

/// One store, as each of them is given it.
#[derive(Debug)]
pub(crate) struct Shared(pub(crate) Arc<dyn Store>);

impl Store for Shared {
    fn connect<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, StoreResult<Connected>> {
        self.0.connect(namespace)
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}
