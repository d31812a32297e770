//! What stands in for the features that are not built in: nobody can ask for them, and what others
//! wrote with them is a miss.

/// Without `lz4` and `zstd`.
#[cfg(not(any(feature = "lz4", feature = "zstd")))]
pub(super) mod compression {
    use crate::envelope::Unusable;
    use crate::error::BuildError;

    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Compression {}

    impl Compression {
        pub(crate) fn check(self) -> Result<(), BuildError> {
            match self {}
        }

        pub(crate) fn compress(self, _payload: &[u8]) -> Option<Vec<u8>> {
            match self {}
        }
    }

    pub(crate) fn expand(bytes: &[u8]) -> Result<Vec<u8>, Unusable> {
        let way = bytes.first().ok_or(Unusable::Length)?;
        Err(Unusable::Compression(*way))
    }
}

/// Without `seal`.
#[cfg(not(feature = "seal"))]
pub(super) mod seal {
    use crate::codec::CodecError;
    use crate::envelope::Unusable;
    use crate::error::BuildError;

    pub(crate) const EXTRA_LEN: usize = 0;

    #[derive(Clone, Debug)]
    pub(crate) enum KeyRing {}

    impl KeyRing {
        pub(crate) fn check(&self) -> Result<(), BuildError> {
            match *self {}
        }
    }

    #[derive(Clone, Debug)]
    pub(crate) enum Seal {}

    impl Seal {
        pub(crate) fn new(ring: KeyRing, _namespace: &str, _entity: &str) -> Self {
            match ring {}
        }

        pub(crate) fn seal(
            &self,
            _out: &mut Vec<u8>,
            _key: &[u8],
            _content: impl FnOnce(&mut Vec<u8>),
        ) -> Result<(), CodecError> {
            match *self {}
        }

        pub(crate) fn open(
            &self,
            _header: &[u8],
            _sealed: &[u8],
            _key: &[u8],
        ) -> Result<Vec<u8>, Unusable> {
            match *self {}
        }
    }
}
