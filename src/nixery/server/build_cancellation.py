"""Cancelling builds: who may, and the route ``POST /api/v1/builds/<id>/cancel``.

With rules, the right ``admin`` over an image allows it, and so does having requested the build, for an identity that is the
only one that did. Without rules nobody is identified, so only the operator may: through the listener of
``NIXERY_ADMIN_PORT``; or through this one, if only this machine reaches it, as with ``/metrics``.
"""

from __future__ import annotations

import re

from nixery.access.audit import AuditLog
from nixery.access.identity import Right
from nixery.access.policy import current_access
from nixery.builds.coordinator import BuildCoordinator
from nixery.builds.history import BuildReport
from nixery.errors import AccessDenied, BuildCancelled, InvalidName, LoginRequired, NixeryError
from nixery.image.name import ImageRequest, requests_for
from nixery.image.platform import Platform
from nixery.request_context import current_request
from nixery.server.clients import host, is_local
from nixery.server.errors import error_response, errors_body
from nixery.server.http import BytesResponse, Request, Response, json_content
from nixery.server.published_builds import PublishedBuilds

_ROUTE = re.compile(r"/api/v1/builds/(?P<build>[0-9a-f]{1,64})/cancel", re.ASCII)

_OPERATOR = "the operator of the server"
_ADMINISTRATOR = "an administrator"
_REQUESTER = "the user who requested it"

_OTHERS_WAIT = "others have requested this build, too: an administrator may cancel it (the right admin)"

_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class _SharedBuildError(Exception):
    """The asker has requested the build, and so have others."""


class BuildCancellation:
    """Decides who may cancel builds, and cancels them.

    Args:
        builds: of this server.
        published: reports of builds, as far as the asker may see them.
        audit: records cancellations; ``None`` for no record.
        private: whether only this machine reaches the listener of the pages, and there is no other one for the operator.
    """

    def __init__(
        self, builds: BuildCoordinator, published: PublishedBuilds, audit: AuditLog | None, *, private: bool
    ) -> None:
        self._builds = builds
        self._published = published
        self._audit = audit
        self._private = private

    def allows(self, request: Request, report: BuildReport) -> bool:
        """Whether the asker may cancel a build that they see."""
        if self._conflict(report):
            return False
        try:
            self._role(request, report)
        except (NixeryError, _SharedBuildError):
            return False
        return True

    async def cancel(self, request: Request, build: str) -> Response:
        """Cancel a build on behalf of the asker; answers before its processes have ended.

        Raises:
            LoginRequired: the asker may not, and sent no credentials.
            AccessDenied: they may not.
            TooBusy: too many requests are waiting.
        """
        report = await self._published.find(build)
        if report is None:
            return errors_body(
                404, "BUILD_UNKNOWN", f"no such build: {build}; the server keeps only recent ones"
            )
        conflict = self._conflict(report)
        if conflict:
            return errors_body(409, "UNSUPPORTED", conflict)
        try:
            role = self._role(request, report)
        except _SharedBuildError:
            return errors_body(409, "UNSUPPORTED", _OTHERS_WAIT)
        return self._cancel(report, role)

    async def answer_operator(self, request: Request) -> Response:
        """Answer a request of the listener that only operators reach; never raises for anything a client can do."""
        match = _ROUTE.fullmatch(request.path)
        if match is None:
            return errors_body(404, "UNSUPPORTED", f"no such route: {request.path}")
        if request.method != "POST":
            return errors_body(405, "UNSUPPORTED", "method not allowed: use POST", headers={"Allow": "POST"})
        # No page is served here. A page of another site can have its own name resolve to this listener, which the
        # browser of an operator reaches: then it has the same origin. Browsers name the origin of every POST.
        if not {"origin", "sec-fetch-site"}.isdisjoint(request.headers):
            message = "a page in a browser sent this request: use a program, such as curl"
            return errors_body(403, "DENIED", message)
        try:
            report = await self._published.find(match["build"])
        except NixeryError as error:
            return error_response(error)
        if report is None:
            return errors_body(404, "BUILD_UNKNOWN", f"no such build: {match['build']}")
        conflict = self._conflict(report)
        return errors_body(409, "UNSUPPORTED", conflict) if conflict else self._cancel(report, _OPERATOR)

    def _conflict(self, report: BuildReport) -> str:
        """Return why nobody can cancel a build through this server; empty if it runs here."""
        if report.is_over:
            return "the build has ended already"
        if self._builds.requesters(report.id) is None:
            return "another server of this storage runs the build: cancel it there, or retry until it answers"
        return ""

    def _cancel(self, report: BuildReport, role: str) -> Response:
        self._builds.cancel(report.id, BuildCancelled(role))
        if self._audit is not None:
            self._audit.cancelled(report.id, report.name, report.platform, report.tag)
        url, page = f"/api/v1/builds/{report.id}", f"/builds/{report.id}"
        return BytesResponse(202, json_content({"id": report.id, "url": url, "page": page}), _HEADERS)

    def _role(self, request: Request, report: BuildReport) -> str:
        """Return in which role the asker may cancel a build, for the message to those who wait for it.

        Raises:
            LoginRequired, AccessDenied: they may not.
            _SharedBuildError: they could if others had not requested it, too.
        """
        access = current_access()
        if not access.is_restricted:
            # A page of another site can have its own name resolve to this machine, and has the same origin then.
            if self._private and not request.forwarded and is_local(host(request)):
                return _OPERATOR
            raise AccessDenied("an anonymous client", "cancel builds")
        requests, tag = _requests_of(report), report.tag or "latest"
        if requests and access.allows(Right.ADMIN, requests, tag):
            return _ADMINISTRATOR
        context = current_request()
        if access.identity.is_anonymous or context is None:
            raise LoginRequired("log in to cancel the build")
        requesters = self._builds.requesters(report.id) or ()
        if context.client in requesters and requests and access.allows(Right.BUILD, requests, tag):
            if len(requesters) > 1:
                raise _SharedBuildError
            return _REQUESTER
        raise AccessDenied(str(access.identity), "cancel this build")


def _requests_of(report: BuildReport) -> tuple[ImageRequest, ...]:
    try:
        return tuple(requests_for(report.name, (Platform.parse(report.platform),)))
    except (InvalidName, ValueError):
        return ()  # of another server, which may have written anything
