from fastapi import APIRouter, HTTPException
from sqlmodel import func, select

from app.db import SessionDep
from app.models import Entry, EntryCreate

router = APIRouter(prefix="/entries", tags=["entries"])


@router.get("/", response_model=list[Entry])
def read_entries(session: SessionDep, limit: int = 20):
    return session.exec(select(Entry).order_by(Entry.id.desc()).limit(limit)).all()


@router.get("/count")
def count_entries(session: SessionDep):
    return {"count": session.exec(select(func.count()).select_from(Entry)).one()}


@router.get("/{entry_id}", response_model=Entry)
def read_entry(entry_id: int, session: SessionDep):
    entry = session.get(Entry, entry_id)
    if not entry:
        raise HTTPException(status_code=404, detail="Entry not found")
    return entry


@router.post("/", response_model=Entry, status_code=201)
def create_entry(new: EntryCreate, session: SessionDep):
    entry = Entry.model_validate(new)
    session.add(entry)
    session.commit()
    session.refresh(entry)
    return entry
