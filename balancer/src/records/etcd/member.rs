//! One member of etcd: its calls, and what their failures mean.

use super::connect::Connector;
use super::wire::{AuthenticateRequest, AuthenticateResponse};
use http::Uri;
use http::uri::PathAndQuery;
use prost::Message;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio_stream::Stream;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// Largest response: a page of the largest chunks (see [`super::range`]), or a transaction's reads.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// Why a member did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing was done; another member may do it.
    NotSent(String),
    /// It may have been done.
    Lost(String),
    /// Nothing was done, and no member will do it.
    Refused(String),
    /// The quota is used up; nothing was done.
    Full(String),
    /// The lease has ended; nothing was done.
    NoLease,
    /// The revision is no longer kept.
    Compacted,
    /// The revision is yet to come.
    Future,
    /// The token is too old; nothing was done.
    Token,
}

/// A user of etcd. Never shown: it holds the password.
#[derive(Clone)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: String,
}

/// See the module.
pub(super) struct Member {
    endpoint: Uri,
    connector: Connector,
    channel: Mutex<Channel>,
    user: Option<User>,
    token: Mutex<Option<MetadataValue<Ascii>>>,
}

impl Member {
    /// A member at an endpoint that has been checked. Connects when it is first asked.
    pub(super) fn new(endpoint: Uri, connector: Connector, user: Option<User>) -> Self {
        let channel = Mutex::new(connector.channel(&endpoint));
        Self { endpoint, connector, channel, user, token: Mutex::default() }
    }

    /// Asks once, and once more with a new token if the old one is not taken. No answer within `deadline`: the connection
    /// is given up.
    pub(super) async fn unary<M, R>(
        &self,
        path: &'static str,
        message: &M,
        deadline: Duration,
    ) -> Result<R, Failure>
    where
        M: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        let answer = async {
            match self.unary_once(path, message).await {
                Err(Failure::Token) => {
                    self.authenticate().await?;
                    self.unary_once(path, message).await
                }
                answer => answer,
            }
        };
        self.within(deadline, answer).await
    }

    /// Opens a stream; the same of tokens and deadlines, up to the first response's headers.
    pub(super) async fn stream<S, M, R>(
        &self,
        path: &'static str,
        requests: impl Fn() -> S + Sync,
        deadline: Duration,
    ) -> Result<Streaming<R>, Failure>
    where
        S: Stream<Item = M> + Send + 'static,
        M: Message + 'static,
        R: Message + Default + 'static,
    {
        let opened = async {
            match self.stream_once(path, requests()).await {
                Err(Failure::Token) => {
                    self.authenticate().await?;
                    self.stream_once(path, requests()).await
                }
                opened => opened,
            }
        };
        self.within(deadline, opened).await
    }

    async fn unary_once<M, R>(&self, path: &'static str, message: &M) -> Result<R, Failure>
    where
        M: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        let mut client = self.client().await?;
        let request = self.request(message.clone()).await?;
        let codec = ProstCodec::<M, R>::default();
        let answer = client.unary(request, PathAndQuery::from_static(path), codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| judge(&status))
    }

    async fn stream_once<S, M, R>(&self, path: &'static str, requests: S) -> Result<Streaming<R>, Failure>
    where
        S: Stream<Item = M> + Send + 'static,
        M: Message + 'static,
        R: Message + Default + 'static,
    {
        let mut client = self.client().await?;
        let request = self.request(requests).await?;
        let codec = ProstCodec::<M, R>::default();
        let answer = client.streaming(request, PathAndQuery::from_static(path), codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| judge(&status))
    }

    async fn client(&self) -> Result<Grpc<Channel>, Failure> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut client = Grpc::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
        client.ready().await.map_err(|e| Failure::NotSent(last_cause(&e)))?;
        Ok(client)
    }

    async fn request<T>(&self, message: T) -> Result<Request<T>, Failure> {
        let mut request = Request::new(message);
        // A member that knows no leader says so at once, instead of waiting for one.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        if self.user.is_some() {
            if self.token().is_none() {
                self.authenticate().await?;
            }
            if let Some(token) = self.token() {
                request.metadata_mut().insert("token", token);
            }
        }
        Ok(request)
    }

    fn token(&self) -> Option<MetadataValue<Ascii>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn authenticate(&self) -> Result<(), Failure> {
        let Some(User { name, password }) = self.user.clone() else {
            return Err(Failure::Refused("it wants a user: set store.user and store.password_file".into()));
        };
        let mut client = self.client().await?;
        let request = Request::new(AuthenticateRequest { name, password });
        let path = PathAndQuery::from_static("/etcdserverpb.Auth/Authenticate");
        let codec = ProstCodec::<_, AuthenticateResponse>::default();
        let answer = client.unary(request, path, codec).await;
        // Nothing but a token came of it, so whatever went wrong changed nothing.
        let answer = answer.map_err(|status| match judge(&status) {
            Failure::Lost(reason) => Failure::NotSent(reason),
            other => other,
        })?;
        let token = answer.into_inner().token.parse();
        let token = token.map_err(|_| Failure::Refused("its token is no plain text".into()))?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }

    /// No answer in time: the connection is given up.
    pub(super) async fn within<T>(
        &self,
        deadline: Duration,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let answer = tokio::time::timeout(deadline, answer).await;
        answer.unwrap_or_else(|_| {
            self.give_up_connection();
            Err(Failure::Lost(format!("no answer within {} ms", deadline.as_millis())))
        })
    }

    /// What was behind a stall may be the connection: the next call makes a new one.
    pub(super) fn give_up_connection(&self) {
        let channel = self.connector.channel(&self.endpoint);
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }
}

/// What a failed call means. Messages are those of etcd 3.4 to 3.6.
pub(super) fn judge(status: &Status) -> Failure {
    let reason = || words(status);
    match (status.code(), status.message()) {
        _ if never_connected(status) => Failure::NotSent(reason()),
        (Code::Unavailable, "etcdserver: no leader") => Failure::NotSent(reason()),
        (Code::ResourceExhausted, "etcdserver: too many requests") => Failure::NotSent(reason()),
        (Code::ResourceExhausted, message) if message.contains("space exceeded") => {
            Failure::Full(message.to_owned())
        }
        (Code::NotFound, message) if message.contains("lease not found") => Failure::NoLease,
        (Code::OutOfRange, message) if message.contains("compacted") => Failure::Compacted,
        (Code::OutOfRange, message) if message.contains("future revision") => Failure::Future,
        (Code::Unauthenticated, _) => Failure::Token,
        (Code::InvalidArgument, message)
            if message.contains("user name is empty") || message.contains("auth store is old") =>
        {
            Failure::Token
        }
        (
            Code::InvalidArgument | Code::PermissionDenied | Code::FailedPrecondition | Code::Unimplemented,
            _,
        ) => Failure::Refused(reason()),
        _ => Failure::Lost(reason()),
    }
}

fn never_connected(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The last cause says the most.
fn last_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The words of a member, or what kept it from speaking.
fn words(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => last_cause(cause),
        None => status.message().to_owned(),
    }
}
