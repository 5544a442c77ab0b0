//! The gate before every gRPC method: who calls, and may it. Handlers find the [`Principal`] among the request's
//! extensions.

use crate::connection::PeerInfo;
use crate::fault::{Fault, FaultCode};
use crate::identity::Principal;
use crate::observer::Observer;
use crate::verbs;
use http::{Request, Response};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;

/// Puts the gate before a server: `server.layer(Authorise::new(observer))`.
#[derive(Clone)]
pub struct Authorise {
    observer: Arc<dyn Observer>,
}

impl Authorise {
    /// Counts refusals there.
    pub fn new(observer: Arc<dyn Observer>) -> Self {
        Self { observer }
    }
}

impl<S> tower::Layer<S> for Authorise {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, observer: self.observer.clone() }
    }
}

/// A service behind the gate.
#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    observer: Arc<dyn Observer>,
}

/// What went through, or the refusal.
type Answer<B, E> = Pin<Box<dyn Future<Output = Result<Response<B>, E>> + Send>>;

impl<S, A, B> tower::Service<Request<A>> for Gate<S>
where
    S: tower::Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Default + Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Answer<B, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let principal = request.extensions().get::<PeerInfo>().map(|peer| peer.principal.clone());
        // A server that was put together without its connections' names must let nobody in.
        let principal = principal.unwrap_or(Principal::Anonymous);
        if let Err(fault) = verbs::authorise(request.uri().path(), &principal) {
            self.observer.auth_failure(fault.code.as_str());
            tracing::debug!(%principal, %fault, "call refused");
            let response = status(&fault).into_http();
            return Box::pin(std::future::ready(Ok(response)));
        }
        request.extensions_mut().insert(principal);
        Box::pin(self.inner.call(request))
    }
}

/// As a gRPC status: the code before the first colon of the message, as everywhere.
pub fn status(fault: &Fault) -> Status {
    let message = fault.to_string();
    match fault.code {
        FaultCode::Missing => Status::unauthenticated(message),
        _ => Status::permission_denied(message),
    }
}
