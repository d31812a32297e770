//! Tags on entries: what a value is invalidated with beside its own key.
//!
//! Which tags a value carries is known once it is loaded, and not before. So a load notes the
//! [`Moment`] at which it begins, and what this pod has come to know of since says whether one of the
//! tags was invalidated meanwhile. From then on the entry is tied to the counts of its tags, as a memo
//! is, and its envelope in the store to positions in the logs of their lanes, which the
//! [floors](crate::tags) of the tags are compared with. `docs/decisions/tags-on-entries.md` has the
//! reasons.

use super::Inner;
use super::look::Look;
use super::outcome::{Landed, Outcome};
use super::target::{Began, Target};
use crate::bus::Moment;
use crate::envelope::TagVersion;
use crate::key::{Carried, Key, Tag, TagHash};
use crate::store::{Found, Link};
use crate::tags::{Dependency, Judged, Told};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// The tags of a value as its builder option names them.
pub(super) type TagsOf<K, V> = Arc<dyn Fn(&K, &V) -> Vec<Tag> + Send + Sync>;

/// The tags of an outcome, and a moment at which none of what they stand for had been read yet.
#[derive(Clone)]
pub(super) struct Tagged {
    pub(super) tags: Arc<[Carried]>,
    pub(super) then: Moment,
}

/// The tags that a loader names.
#[derive(Clone, Debug, Default)]
pub(crate) struct SaidTags {
    pub(super) hard: Vec<Tag>,
    pub(super) soft: Vec<Tag>,
}

/// A stored value whose worth depends on tags that this pod does not know the floors of.
pub(super) struct Untold {
    pub(super) found: Found,
    tags: Vec<TagHash>,
    /// How much longer it lives; `None` for ever.
    life: Option<Duration>,
}

/// What a stored value is worth by its tags, to one reader.
pub(super) enum Worth {
    /// Nothing ties it.
    Free,
    /// It stands by this; the time to live is over if so it says.
    Tied(Tagged, Dependency, bool),
    Dead,
    Unknown(Vec<TagHash>),
}

impl Untold {
    pub(super) fn boxed(found: Found, tags: Vec<TagHash>, life: Option<Duration>) -> Box<Self> {
        Box::new(Self { found, tags, life })
    }
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// The tags of an outcome, each once, without those that every entry has: the names of its entity and
    /// of its key. `said` is what the loader named. What is named both ways is not soft.
    pub(super) fn tags_of(
        &self,
        target: &Target<K>,
        outcome: &Outcome<V, E>,
        said: SaidTags,
    ) -> Arc<[Carried]> {
        let SaidTags { mut hard, mut soft } = said;
        if let Ok(value) = outcome {
            let named = |tags: &Option<TagsOf<K, V>>| match tags {
                Some(tags) => tags(&target.key, value),
                None => Vec::new(),
            };
            hard.extend(named(&self.options.tags));
            soft.extend(named(&self.options.soft_tags));
        }
        let space = &self.bus().space;
        let entity = self.keys.entity_hash();
        let own = |tag: &TagHash| tag.name == entity && (tag.is_bare() || tag.key == target.hash);
        let carried = |tags: Vec<Tag>, soft| {
            let hashed = tags.into_iter().map(|tag| space.hash_tag(&tag));
            hashed.map(move |tag| Carried { tag, soft })
        };
        let all = carried(hard, false).chain(carried(soft, true));
        let mut tags: Vec<_> = all.filter(|carried| !own(&carried.tag)).collect();
        tags.sort_unstable();
        tags.dedup_by_key(|carried| carried.tag);
        tags.into()
    }

    /// What a stored value with these tags is worth to a reader who began there.
    pub(super) fn worth(&self, began: &Began, tags: &[TagVersion], told: Option<&Told>) -> Worth {
        if tags.is_empty() {
            return Worth::Free;
        }
        match self.cache.0.tags.judge(self.bus(), tags, told) {
            Judged::Dead => Worth::Dead,
            Judged::Unknown => {
                let tags = tags.iter().map(|version| version.carried.tag);
                Worth::Unknown(tags.collect())
            }
            Judged::Current { tied, expired } => {
                let tagged = Tagged {
                    tags: tags.iter().map(|version| version.carried).collect(),
                    then: began.moment,
                };
                Worth::Tied(tagged, tied, expired)
            }
        }
    }

    /// Whether an outcome may miss an invalidation of one of its tags that the reader who gets it must
    /// see: one that this pod knew of before the reader came, or could not know of as its lanes were not
    /// live then.
    ///
    /// A key's invalidation detaches the flight of the key, so that nobody joins it any more. A tag's
    /// cannot, for the flight does not know its tags until it lands:
    ///
    /// 1. A load begins, and reads a record of the org 7.
    /// 2. `org:7` is invalidated, and that is acknowledged.
    /// 3. Another reader of the key comes, and joins the flight.
    /// 4. The load lands. Who began it may have its outcome, who came in step 3 may not.
    pub(super) fn is_overtaken(&self, landed: &Landed<V, E>, reader: &Began) -> bool {
        let Some(tagged) = &landed.tagged else {
            return false;
        };
        let bus = self.bus();
        let live = reader.start < reader.tags_until;
        let young = reader.start < landed.as_of + bus.rules.lease;
        let older = tagged.then < reader.moment;
        let noticed = || {
            let tags = &self.cache.0.tags;
            tags.noticed_since(bus, &tagged.tags, tagged.then)
        };
        !(live || young) || (older && noticed())
    }

    /// What is made of what was found, once the floors of its tags are known, which costs a round trip
    /// where they are not; `None` if the store is of no help.
    pub(super) async fn told(
        &self,
        link: &dyn Link,
        target: &Target<K>,
        began: &Began,
        found: Found,
    ) -> Option<Look<V, E>> {
        let untold = match self.judge(target, began, found) {
            Look::Untold(untold) => untold,
            look => return Some(look),
        };
        // Boxed, so that the future of a read that needs none of this stays small.
        Box::pin(self.learn(link, &untold.tags, untold.life)).await?;
        Some(self.judge_again(target, began, *untold))
    }

    /// As [`told`](Self::told), by floors that are asked for now, whatever is known: for those who must see
    /// everything that was acknowledged before. The script that answers may set a floor, so a node that
    /// takes no writes any more refuses it.
    pub(super) async fn told_anew(
        &self,
        link: &dyn Link,
        target: &Target<K>,
        began: &Began,
        found: Found,
    ) -> Option<Look<V, E>> {
        let none = Told::default();
        let untold = match self.judge_by(target, began, found, Some(&none)) {
            Look::Untold(untold) => untold,
            look => return Some(look),
        };
        let (registry, bus) = (&self.cache.0.tags, self.bus());
        let told = match registry.wanted_anew(bus, untold.tags, untold.life) {
            Some(wanted) => registry.learn(bus, link, wanted).await.ok()?,
            None => none,
        };
        Some(
            match self.judge_by(target, began, untold.found, Some(&told)) {
                Look::Untold(_) => Look::Sync,
                look => look,
            },
        )
    }

    /// As [`told`](Self::told), of many at once.
    pub(super) async fn told_many<'a>(
        &self,
        link: &dyn Link,
        found: impl Iterator<Item = (&'a Target<K>, &'a Began, Option<Found>)>,
    ) -> Vec<Option<Look<V, E>>>
    where
        K: 'a,
    {
        let judged = found.map(|(target, began, found)| {
            let look = found.map(|found| self.judge(target, began, found));
            (target, began, look)
        });
        let judged: Vec<_> = judged.collect();
        let untold = judged.iter().filter_map(|(.., look)| match look {
            Some(Look::Untold(untold)) => Some(untold),
            _ => None,
        });
        let (mut tags, mut life) = (Vec::new(), Some(Duration::ZERO));
        for untold in untold {
            tags.extend_from_slice(&untold.tags);
            life = life.zip(untold.life).map(|(one, other)| one.max(other));
        }
        let learnt = self.learn(link, &tags, life).await;
        let again = judged.into_iter().map(|(target, began, look)| match look {
            Some(Look::Untold(untold)) => {
                learnt?;
                Some(self.judge_again(target, began, *untold))
            }
            look => look,
        });
        again.collect()
    }

    /// What is still not known was not to be had: the lane of a tag is not where this pod has followed it,
    /// or the tag was invalidated meanwhile.
    fn judge_again(&self, target: &Target<K>, began: &Began, untold: Untold) -> Look<V, E> {
        match self.judge(target, began, untold.found) {
            Look::Untold(_) => Look::Sync,
            look => look,
        }
    }

    /// Gets to know the floors of `tags` that are not known, for a value that lives so long; `None` if the
    /// store is of no help.
    pub(super) async fn learn(
        &self,
        link: &dyn Link,
        tags: &[TagHash],
        life: Option<Duration>,
    ) -> Option<()> {
        let registry = &self.cache.0.tags;
        let Some(wanted) = registry.wanted(self.bus(), tags.iter().copied(), life) else {
            return Some(());
        };
        let learnt = registry.learn(self.bus(), link, wanted).await;
        learnt.ok().map(|_known| ())
    }
}
