//! What the gateway keeps of a pool besides its place in `dispatch`: identity, and whether whoever listens there lives.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::HeaderValue;

use crate::admission::{Admission, PoolIx, Upstream};
use crate::relay::{Peer, Vitals};

/// A pool as requests leave for it.
pub(super) struct Outlet {
    pub upstream: Arc<Upstream>,
    pub peer: Peer,
    pub vitals: Arc<Vitals>,
    /// Its node and itself, for the answer's headers.
    pub node: HeaderValue,
    pub pool: HeaderValue,
}

/// All of them, by the places of their pools. Made on first use and again when a place is another pool's.
#[derive(Default)]
pub(super) struct Outlets(RwLock<Vec<Option<Arc<Outlet>>>>);

impl Outlets {
    /// That of the pool in this place.
    pub fn of(
        &self,
        place: PoolIx,
        upstream: &Arc<Upstream>,
        admission: &Arc<Admission>,
        hung_after: Duration,
    ) -> Arc<Outlet> {
        let at = place.0 as usize;
        let is_it = |outlet: &&Arc<Outlet>| Arc::ptr_eq(&outlet.upstream, upstream);
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(outlet) = known.get(at).and_then(Option::as_ref).filter(is_it) {
            return Arc::clone(outlet);
        }
        drop(known);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() <= at {
            known.resize(at + 1, None);
        }
        // Another thread may have been here in between.
        if let Some(outlet) = known[at].as_ref().filter(is_it) {
            return Arc::clone(outlet);
        }
        let outlet = Arc::new(Outlet::new(upstream, admission, hung_after));
        known[at] = Some(Arc::clone(&outlet));
        outlet
    }
}

impl Outlet {
    fn new(upstream: &Arc<Upstream>, admission: &Arc<Admission>, hung_after: Duration) -> Self {
        let peer = if upstream.trusted {
            Peer::Agent
        } else {
            Peer::Engine
        };
        let tell = {
            // Held by neither: the pool may go, and the process end, while somebody still asks for its health.
            let (admission, upstream) = (Arc::downgrade(admission), Arc::downgrade(upstream));
            move |hung| {
                if let (Some(admission), Some(upstream)) = (admission.upgrade(), upstream.upgrade())
                {
                    admission.set_hung(&upstream, hung);
                }
            }
        };
        let origin = upstream.origin.clone();
        let name = |text: &str| {
            HeaderValue::from_str(text).expect("ids have no characters that headers lack")
        };
        Self {
            upstream: Arc::clone(upstream),
            peer,
            vitals: Vitals::new(origin, peer, hung_after, Some(Box::new(tell))),
            node: name(upstream.node_id.as_str()),
            pool: name(upstream.pool_id.as_str()),
        }
    }
}
