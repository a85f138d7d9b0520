from django.http import JsonResponse
from django.shortcuts import get_object_or_404

from books.models import Book


def index(request):
    books = Book.objects.order_by("-id")[:20]
    return JsonResponse({"books": [{"id": book.id, "title": book.title} for book in books]})


def detail(request, book_id):
    book = get_object_or_404(Book, pk=book_id)
    return JsonResponse({"id": book.id, "title": book.title, "price": str(book.price)})
