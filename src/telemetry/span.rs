//! Spans of the feature `tracing`.

/// Runs a future inside a span, where there are spans; else gives the future itself.
///
/// Spans are named and tell the cache, the entity, the operation. No key is in them: keys may be
/// personal, and are many.
macro_rules! spanned {
    ($name:literal, { $($fields:tt)* }, $future:expr) => {{
        #[cfg(feature = "tracing")]
        {
            let span = ::tracing::debug_span!(target: "tidings", $name, $($fields)*);
            ::tracing::Instrument::instrument($future, span)
        }
        #[cfg(not(feature = "tracing"))]
        {
            $future
        }
    }};
}

pub(crate) use spanned;
