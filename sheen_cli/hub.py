"""Upload to the Hub: private unless asked, one commit, safe to repeat. The token is the one of the
environment or of `hf auth login`, and is never shown.
"""

import hashlib
import random
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from sheen_cli import bundle, card, checkpoints, console, logins
from sheen_cli.bundle import CARD, Bundle
from sheen_cli.errors import SheenError, Unreachable
from sheen_cli.recipe import REPOSITORY, Recipe, read

DELAYS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
LONGEST = 30.0  # seconds to wait, where the server asks for a wait
QUICK, SILENCE = 10.0, 60.0  # seconds without an answer: of a first question, of any other request
TOKENS = "https://huggingface.co/settings/tokens"
T = TypeVar("T")


def prepare(checkpoint: Path, repository: str, license: str | None = None) -> Bundle:
    """The bundle of a checkpoint with its card. Raises SheenError for a name that is none."""
    if not REPOSITORY.fullmatch(repository):
        raise SheenError(f"'{repository}' is no repository: it is named USER/NAME")
    packed = bundle.pack(checkpoint)
    license = license or read(checkpoint / "recipe.yaml").get("hub", {}).get("license")
    packed.files[CARD] = card.write(packed, checkpoint, repository, license).encode()
    return packed


def push(packed: Bundle, repository: str, private: bool) -> dict[str, Any]:
    """Upload a bundle; returns the URL and the commit, None where all was there already. Raises
    SheenError for a refusal, Unreachable where the Hub cannot be had.
    """
    api = client()
    with suppress(Unreachable):  # the attempts have more patience
        check(api, repository, private)
    return patiently(lambda: attempt(api, packed, repository, private))


def check(api: Any, repository: str, private: bool) -> str | None:
    """Raise SheenError where the token cannot write, as far as the Hub tells, or the repository is
    public against the wish; Unreachable where it does not answer at once. Returns a doubt.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    doubt = None
    try:
        doubt = doubted(ask(f"{api.endpoint}/api/whoami-v2").json(), repository)
        refuse_public(api.model_info(repository, timeout=QUICK), private)
    except RepositoryNotFoundError:
        pass  # it will be made
    except Exception as error:
        raise refusal(error) or Unreachable(f"the Hub cannot be had: {brief(error)}") from None
    return doubt


def doubted(who: dict[str, Any], repository: str) -> str | None:
    """Whose token it is, where that may not write there. Raises SheenError for one that only
    reads.
    """
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise SheenError(f"the token for the Hub can only read; make one that writes: {TOKENS}")
    owners = {who.get("name"), *(each.get("name") for each in who.get("orgs", []))}
    owner = repository.partition("/")[0]
    if role != "write" or owner in owners:
        return None
    return f"the token for the Hub is of {who.get('name')}, who is not known to write to {owner}"


def refuse_public(info: Any, private: bool) -> None:
    if private and not info.private:
        raise SheenError(
            f"{info.id} is public already: add --no-private (hub.private=false) to upload to it, "
            f"or choose another"
        )


def attempt(api: Any, packed: Bundle, repository: str, private: bool) -> dict[str, Any]:
    """One upload. What an attempt before has done, although its answer was lost, is left alone."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repository)
    except RepositoryNotFoundError:
        api.create_repo(repository, private=private, exist_ok=True)
        info = api.model_info(repository)
    refuse_public(info, private)
    old = there(api, repository)
    changed = [name for name in packed.files if not same(packed.files[name], old.get(name))]
    stale = sorted(sent_before(api, repository, old) - set(packed.files))
    url = f"{api.endpoint}/{repository}"
    if not changed and not stale:
        return {"url": url, "commit": None}
    operations = [CommitOperationDelete(name) for name in stale]
    operations += [CommitOperationAdd(name, packed.files[name]) for name in changed]
    made = commit(api, repository, operations)
    new = there(api, repository)
    if wrong := [
        name for name, content in packed.files.items() if not same(content, new.get(name))
    ]:
        raise Unreachable(f"{repository} does not hold what was sent: {', '.join(wrong[:3])}")
    return {"url": url, "commit": made.oid}


def commit(api: Any, repository: str, operations: list[Any]) -> Any:
    """One commit. What the Hub thinks of the card is a line of ours."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UserWarning)
        try:
            made = api.create_commit(repository, operations, commit_message="Upload by sheen")
        except ValueError as error:
            if CARD not in str(error):
                raise
            reason = " ".join(str(error).split())
            raise SheenError(f"the Hub refuses the model card: {reason}") from None
    for warning in seen:
        if CARD in str(warning.message):
            said = str(warning.message).partition(CARD)[2].strip(":- \n")
            console.warn(f"the Hub says of the model card: {' '.join(said.split())}")
    return made


def there(api: Any, repository: str) -> dict[str, Any]:
    """The repository's files by name."""
    entries = api.list_repo_tree(repository, recursive=True)
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}


def same(content: Path | bytes, entry: Any) -> bool:
    """Whether a file of a repository has this content, by the hash that the Hub keeps of it."""
    if entry is None or entry.size != bundle.size(content):
        return False
    if entry.lfs:
        return bool(entry.lfs.sha256 == bundle.digest(content))
    data = content if isinstance(content, bytes) else content.read_bytes()
    return bool(entry.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())


def sent_before(api: Any, repository: str, old: dict[str, Any]) -> set[str]:
    """The files of an earlier upload: an adapter that stayed beside whole weights would be taken
    for the model.
    """
    if checkpoints.MANIFEST not in old:
        return set()
    manifest = ask(f"{api.endpoint}/{repository}/resolve/main/{checkpoints.MANIFEST}")
    try:
        facts = manifest.json()
        ours = facts.pop("seal") == checkpoints.seal(facts)
        return set(facts["files"]) & set(old) if ours else set()
    except (ValueError, LookupError, TypeError, AttributeError):
        return set()


def ask(address: str) -> Any:
    """The Hub's answer to a GET with our token, which raises what the client raises."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    response = get_session().get(address, headers=build_hf_headers(token=True), timeout=QUICK)
    hf_raise_for_status(response)
    return response


# --- patience -----------------------------------------------------------------------------------


def client() -> Any:
    """The Hub's client, which gives up on a server that is silent. Raises SheenError where there
    is no token.
    """
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise Unreachable("HF_HUB_OFFLINE is set: nothing is uploaded")
    if not logins.hub():
        raise SheenError("there is no token for the Hub: `hf auth login`, or set HF_TOKEN")
    if not console.fancy():
        disable_progress_bars()
    if hasattr(huggingface_hub, "configure_http_backend"):  # later clients have limits themselves
        huggingface_hub.configure_http_backend(limited)
    return huggingface_hub.HfApi()


def limited() -> Any:
    """A session in which no request waits for ever."""
    import requests
    from requests.adapters import HTTPAdapter

    class Limited(HTTPAdapter):
        def send(self, *arguments: Any, **options: Any) -> Any:
            options["timeout"] = options.get("timeout") or SILENCE
            return super().send(*arguments, **options)

    session = requests.Session()
    for start in ("http://", "https://"):
        session.mount(start, Limited())
    return session


def patiently(job: Callable[[], T]) -> T:
    """Do a job again while it fails for a reason that may pass. Raises SheenError in the end."""
    for delay in (*DELAYS, None):
        try:
            return job()
        except Exception as error:
            if (reason := refusal(error)) is not None:
                raise reason from None
            if (wait := pause(error, delay)) is None:
                raise Unreachable(f"the Hub cannot be had: {brief(error)}") from None
            console.say(f"the Hub: {brief(error)}; again in {wait:.0f} s")
            time.sleep(wait)
    raise AssertionError("unreachable")


def pause(error: Exception, delay: float | None) -> float | None:
    """Seconds before the next attempt, longer where the server asks for it."""
    if delay is None:
        return None
    response = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    wait = delay * random.uniform(0.8, 1.2)
    return max(wait, min(float(asked), LONGEST)) if asked.isdigit() else wait


def refusal(error: BaseException) -> BaseException | None:
    """What to raise for an error that no repetition mends; None for one that may pass."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, SheenError):
        return error
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            return SheenError(f"the Hub refuses the token: {brief(error)}; see {TOKENS}")
        if status < 500 and status not in (408, 412, 429):
            return SheenError(f"the Hub refuses the upload: {brief(error)}")
        return None
    if isinstance(error, (ConnectionError, TimeoutError)):
        return None
    if type(error).__module__.partition(".")[0] in ("requests", "urllib3", "httpx", "httpcore"):
        return None
    # what uploads large files wraps the reason
    return refusal(error.__cause__) if error.__cause__ else error


def brief(error: BaseException) -> str:
    """An error in one line, without a token."""
    from huggingface_hub import get_token

    response = getattr(error, "response", None)
    server = getattr(error, "server_message", None)
    text = f"{response.status_code}: {server or response.reason}" if response is not None else ""
    text = text or (str(error).strip() or type(error).__name__).splitlines()[0]
    return logins.scrub(text, [*logins.values(), *filter(None, [get_token()])])[:300]


# --- a training that uploads --------------------------------------------------------------------


def look_ahead(recipe: Recipe[Any]) -> None:
    """Say before the training, in one line, what would be in the way of its upload."""
    wish = recipe.hub
    if wish.push_to is not None and not console.mute():
        try:
            if doubt := check(client(), wish.push_to, wish.private):
                console.warn(f"the upload to {wish.push_to} may be refused: {doubt}")
        except Exception as error:
            console.warn(f"no upload to {wish.push_to} as things are: {brief(error)}")


def push_trained(recipe: Recipe[Any], run: Path) -> None:
    """Upload what a training leaves. A failure is said, with the command that repeats it."""
    wish = recipe.hub
    if wish.push_to is None or console.mute():
        return
    trained = run / wish.which
    try:
        packed = prepare(checkpoints.resolve(trained), wish.push_to)
        done = push(packed, wish.push_to, wish.private)
        console.say(told(done, wish.private))
    except Exception as error:
        again = f"sheen push {trained} {wish.push_to}" + ("" if wish.private else " --no-private")
        console.warn(f"the upload failed: {brief(error)}; run: {again}")


def told(done: dict[str, Any], private: bool) -> str:
    kind = "private" if private else "public"
    return f"{done['url']} ({kind})" + ("" if done["commit"] else ": it held all of this already")
