//! The gRPC methods, and the rules for calls of each.

use super::labels::label;
use crate::api::auth::caller::Right;

label! {
    /// A gRPC method of the service.
    Method {
        Authorize = "pdp.v1.AuthorizationService/Authorize",
        BatchAuthorize = "pdp.v1.AuthorizationService/BatchAuthorize",
        StreamAuthorize = "pdp.v1.AuthorizationService/StreamAuthorize",
        GetStatus = "pdp.v1.PolicyStoreService/GetStatus",
        WatchStatus = "pdp.v1.PolicyStoreService/WatchStatus",
        ListPolicies = "pdp.v1.PolicyStoreService/ListPolicies",
        Reload = "pdp.v1.PolicyStoreService/Reload",
        HealthCheck = "grpc.health.v1.Health/Check",
        HealthWatch = "grpc.health.v1.Health/Watch",
        Reflection = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        /// Reflection for older clients.
        OldReflection = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        /// Any other method; it is not implemented.
        Other = "other",
    }
}

impl Method {
    /// Returns the method with this path.
    pub(crate) fn from_path(path: &str) -> Self {
        let Some(name) = path.strip_prefix('/') else {
            return Self::Other;
        };
        // The search finds `Authorize`, the target of nearly all calls, first.
        let known = Self::ALL.iter().find(|method| method.label() == name);
        known.copied().unwrap_or(Self::Other)
    }

    /// Returns the right that a caller needs; `None` if any listed caller may call it.
    pub(crate) const fn required_right(self) -> Option<Right> {
        match self {
            Self::Authorize | Self::BatchAuthorize | Self::StreamAuthorize => {
                Some(Right::Authorize)
            }
            Self::GetStatus | Self::WatchStatus | Self::ListPolicies => Some(Right::Store),
            Self::Reload => Some(Right::Administer),
            Self::HealthCheck
            | Self::HealthWatch
            | Self::Reflection
            | Self::OldReflection
            | Self::Other => None,
        }
    }

    /// Returns whether callers need not authenticate. `Watch` is not open to all, since it holds a
    /// stream open.
    pub(crate) const fn is_open_to_all(self) -> bool {
        matches!(self, Self::HealthCheck)
    }

    /// Returns whether calls are traced. Health checks are not: they come every few seconds, and
    /// no request causes them.
    pub(crate) const fn is_traced(self) -> bool {
        !matches!(self, Self::HealthCheck | Self::HealthWatch)
    }

    /// Returns whether a call has one request and one response. Other calls last as long as the
    /// caller likes.
    pub(crate) const fn is_unary(self) -> bool {
        !matches!(
            self,
            Self::StreamAuthorize
                | Self::WatchStatus
                | Self::HealthWatch
                | Self::Reflection
                | Self::OldReflection
        )
    }

    /// Returns the name of the method in spans, by OpenTelemetry's conventions.
    pub(super) fn span_name(self) -> &'static str {
        match self == Self::Other {
            true => "_OTHER",
            false => self.label(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_paths_are_other_methods() {
        for method in Method::ALL {
            let path = format!("/{}", method.label());
            assert_eq!(Method::from_path(&path), *method);
        }
        for path in ["", "/", "other", "/pdp.v1.AuthorizationService/authorize"] {
            assert_eq!(Method::from_path(path), Method::Other, "{path}");
        }
    }
}
