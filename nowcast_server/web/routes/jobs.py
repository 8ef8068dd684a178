"""Jobs: register, read, finish, delete."""

from fastapi import APIRouter, Request, Response

from nowcast_server.web.routes.calls import OwnJob, Run, Tenant, TheJob, TheJobId, TheService, json_body, parse, read_body
from protos.messages import JobList, JobSpec, JobStatus, Progress

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.put("/{job}", openapi_extra=json_body(JobSpec), responses={201: {"description": "Registered", "model": JobStatus}})
async def register(  # noqa: PLR0917 -- FastAPI passes them by name
    job: TheJobId, tenant: Tenant, service: TheService, request: Request, response: Response, run: Run = None
) -> JobStatus:
    """Register a job; 201 if it is new, 200 if it is registered with the same settings."""
    service.admit()
    limit_bytes = service.settings.max_registration
    limit_s = service.settings.transfer_limit_s(limit_bytes)
    chunked = "transfer-encoding" in request.headers
    size_bytes = limit_bytes if chunked else min(limit_bytes, int(request.headers.get("content-length", "0")))
    with service.registrations.receiving(tenant, size_bytes):
        body = await read_body(request, max_bytes=limit_bytes, limit_s=limit_s)
        async with service.registrations.reading(tenant, len(body)):
            spec = await parse(JobSpec, body)
            registered, created = await service.register(tenant, job, spec=spec, run=run)
    response.status_code = 201 if created else 200
    return registered.status()


@router.get("")
async def list_jobs(tenant: Tenant, service: TheService) -> JobList:
    """The caller's jobs."""
    return JobList(jobs=[job.status() for job in service.jobs.of(tenant)])


@router.get("/{job}")
async def status(job: TheJob) -> JobStatus:
    """What the server knows of a job."""
    return job.status()


@router.delete("/{job}", status_code=204)
async def delete(job: TheJob, service: TheService) -> None:
    """Forget a job and its history."""
    service.remove(job)


@router.post("/{job}/finish", openapi_extra=json_body(Progress, required=False))
async def finish(job: OwnJob, service: TheService, request: Request) -> JobStatus:
    """Mark a run as ended, with its progress: the memory of its history is freed, its status stays."""
    if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        job.tell(await parse(Progress, await read_body(request, limit_s=service.settings.upload_grace_s)))
    service.finish(job)
    return job.status()
