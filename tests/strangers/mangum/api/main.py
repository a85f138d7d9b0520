from fastapi import APIRouter, Depends, FastAPI, HTTPException
from mangum import Mangum
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.database import Order, get_session

router = APIRouter(prefix="/orders")


@router.get("")
def orders(session: Session = Depends(get_session)):
    found = session.scalars(select(Order).order_by(Order.id.desc()).limit(20))
    return [{"id": order.id, "item": order.item} for order in found]


@router.get("/{order_id}")
def order(order_id: int, session: Session = Depends(get_session)):
    found = session.get(Order, order_id)
    if found is None:
        raise HTTPException(404)
    return {"id": found.id, "item": found.item}


@router.post("", status_code=201)
def create(item: str, session: Session = Depends(get_session)):
    order = Order(item=item)
    session.add(order)
    session.commit()
    return {"id": order.id}


app = FastAPI()
app.include_router(router)
handler = Mangum(app, lifespan="off")
