//! The errors of the store and of reads.

pub use crate::registration::Mismatch;
use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What kind of trouble the backing store is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// It cannot be reached, or the connection broke.
    Unavailable,
    /// It did not answer in time; what was asked may have happened.
    Timeout,
    /// There is no TLS between it and this pod: one does not trust the other's certificate, or what answers
    /// at that port speaks none.
    Tls,
    /// It refused the user name or password.
    Auth,
    /// It refused the command to this user.
    Denied,
    /// It has no memory left for writes.
    Full,
    /// It takes no writes: a replica, or a server that cannot persist.
    ReadOnly,
    /// It has done what was asked for, but fewer of its replicas than
    /// [`Acknowledge`](crate::store::Acknowledge) asks for confirmed that in time.
    Unreplicated,
    /// It is still loading its data, or busy with a script; or the node of a cluster that has the key
    /// does not answer, or is handing its slot over.
    Busy,
    /// It answered something that is not of its protocol or not what was asked for.
    Protocol,
    /// Something of another kind stands under the key: a hash where a value was asked for, or a value
    /// where a hash was.
    WrongType,
    /// It is not a server of the kind or version that this backend needs.
    Unsupported,
    /// The command cannot go over the connection that the whole cache shares.
    Refused,
    /// What was to be written is longer than what may go over the connection that the whole cache shares;
    /// nothing was sent.
    TooLong,
    /// Its address or options cannot be used.
    Config,
    /// The cache was closed.
    Closed,
}

impl StoreErrorKind {
    fn text(self) -> &'static str {
        match self {
            Self::Unavailable => "store unavailable",
            Self::Timeout => "store did not answer in time",
            Self::Tls => "store not reached over TLS",
            Self::Auth => "store refused the credentials",
            Self::Denied => "store denied the command to this user",
            Self::Full => "store out of memory",
            Self::ReadOnly => "store accepts no writes",
            Self::Unreplicated => "not enough replicas confirmed",
            Self::Busy => "store busy",
            Self::Protocol => "store gave an unexpected answer",
            Self::WrongType => "store holds something of another kind under the key",
            Self::Refused => "command refused on the shared connection",
            Self::TooLong => "value too long for the shared connection",
            Self::Unsupported => "store is of an unsupported kind",
            Self::Config => "store configuration unusable",
            Self::Closed => "cache closed",
        }
    }
}

/// The backing store could not do what was asked.
///
/// Cheap to clone. Never holds a password or a value; keys appear only where the caller named them.
#[derive(Clone)]
pub struct StoreError(Arc<Repr>);

struct Repr {
    kind: StoreErrorKind,
    operation: &'static str,
    detail: Option<Cow<'static, str>>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// An error of `kind` in `operation`, such as `"read"` or `"connect"`.
    #[must_use]
    pub fn new(kind: StoreErrorKind, operation: &'static str) -> Self {
        Self(Arc::new(Repr {
            kind,
            operation,
            detail: None,
            source: None,
        }))
    }

    /// The same with a few words on what was wrong. Must hold no secret.
    #[must_use]
    pub fn with_detail(self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.map(|repr| repr.detail = Some(detail.into()))
    }

    /// The same with the error that caused it. Must hold no secret.
    #[must_use]
    pub fn with_source(self, source: impl Error + Send + Sync + 'static) -> Self {
        self.map(|repr| repr.source = Some(Box::new(source)))
    }

    fn map(self, change: impl FnOnce(&mut Repr)) -> Self {
        let mut repr = Arc::try_unwrap(self.0).unwrap_or_else(|shared| Repr {
            kind: shared.kind,
            operation: shared.operation,
            detail: shared.detail.clone(),
            source: None,
        });
        change(&mut repr);
        Self(Arc::new(repr))
    }

    /// What kind of trouble it is.
    #[must_use]
    pub fn kind(&self) -> StoreErrorKind {
        self.0.kind
    }

    /// What was being done.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// Whether the same call may succeed later without anybody changing the configuration.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use StoreErrorKind::{
            Auth, Closed, Config, Denied, Refused, Tls, TooLong, Unsupported, WrongType,
        };
        !matches!(
            self.0.kind,
            Auth | Closed | Config | Denied | Refused | Tls | TooLong | Unsupported | WrongType
        )
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.0.kind.text(), self.0.operation)?;
        match &self.0.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreError")
            .field("kind", &self.0.kind)
            .field("operation", &self.0.operation)
            .field("detail", &self.0.detail)
            .field("source", &self.0.source)
            .finish()
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// A read that could not give a value. `E` is the loader's own error.
#[derive(Debug)]
#[non_exhaustive]
pub enum CacheError<E> {
    /// The loader failed.
    Load(Arc<E>),
    /// The loader panicked, the runtime dropped it, or a batch loader gave no answer for the key; the
    /// next call loads again.
    LoadAborted,
    /// The backing store failed where the loader could not stand in for it.
    Store(StoreError),
    /// No outcome within the hard limit; the load itself may still end and be cached.
    Timeout {
        /// The limit that passed.
        after: Duration,
    },
    /// The cache was closed.
    Closed,
}

// Not derived: that would ask for `E: Clone`.
impl<E> Clone for CacheError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Load(error) => Self::Load(Arc::clone(error)),
            Self::LoadAborted => Self::LoadAborted,
            Self::Store(error) => Self::Store(error.clone()),
            Self::Timeout { after } => Self::Timeout { after: *after },
            Self::Closed => Self::Closed,
        }
    }
}

impl<E> CacheError<E> {
    /// The loader's own error, if that is what this is.
    #[must_use]
    pub fn load_error(&self) -> Option<&E> {
        match self {
            Self::Load(error) => Some(error),
            _ => None,
        }
    }
}

impl<E> fmt::Display for CacheError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(_) => f.write_str("loader failed"),
            Self::LoadAborted => f.write_str("loader panicked or was dropped"),
            Self::Store(_) => f.write_str("backing store failed"),
            Self::Timeout { after } => write!(f, "no outcome within {after:?}"),
            Self::Closed => f.write_str("cache closed"),
        }
    }
}

impl<E: Error + 'static> Error for CacheError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Load(error) => Some(&**error),
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

impl<E> From<StoreError> for CacheError<E> {
    fn from(error: StoreError) -> Self {
        match error.kind() {
            StoreErrorKind::Closed => Self::Closed,
            _ => Self::Store(error),
        }
    }
}

/// A cache, an entity or a memo could not be built; names the option and what is wrong with it.
#[derive(Clone, Debug)]
pub struct BuildError {
    option: &'static str,
    reason: Cow<'static, str>,
    source: Option<StoreError>,
}

impl BuildError {
    pub(crate) fn new(option: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            option,
            reason: reason.into(),
            source: None,
        }
    }

    pub(crate) fn store(option: &'static str, store: &str, source: StoreError) -> Self {
        let reason = format!("cannot use {store}").into();
        Self {
            option,
            reason,
            source: Some(source),
        }
    }

    /// The store could not be used at the start.
    pub(crate) fn start(store: &str, error: StoreError) -> Self {
        let mut built = Self::store("store", store, error);
        if let Some(mismatch) = built.mismatch().cloned() {
            built.option = match mismatch.setting() {
                "lanes" => "lanes",
                _ => "namespace",
            };
            built.reason = mismatch.to_string().into();
        }
        built
    }

    /// The option that cannot be used as it was given.
    #[must_use]
    pub fn option(&self) -> &'static str {
        self.option
    }

    /// What this pod and its namespace's record in the store disagree on, if that is why.
    #[must_use]
    pub fn mismatch(&self) -> Option<&Mismatch> {
        self.source.as_ref()?.source()?.downcast_ref()
    }

    /// What the store said, if it was the store that could not be used.
    #[must_use]
    pub fn store_error(&self) -> Option<&StoreError> {
        self.source.as_ref()
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "option `{}`: {}", self.option, self.reason)
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
