/* signal.h: charts that hear of prices as long as they live. */
#include "check.h"

#include <weakref/signal.h>

struct chart {
    double last;
    int n_prices;
};

static const wr_type chart_type = {.name = "chart", .size = sizeof(struct chart)};

static int on_price(void *obj, void *arg)
{
    struct chart *chart = obj; /* strong for the duration of the call */
    chart->last = *(double *)arg;
    chart->n_prices++;
    return 0;
}

int main(void)
{
    wr_signal *price = wr_signal_new("price");
    struct chart *day = wr_new(&chart_type), *year = wr_new(&chart_type);
    CHECK(price != NULL && day != NULL && year != NULL);

    wr_connection *yearly;
    CHECK(wr_signal_connect(price, day, on_price, NULL) == 0); /* until the chart dies */
    CHECK(wr_signal_connect(price, year, on_price, &yearly) == 0);

    double quote = 42.5;
    CHECK(wr_signal_emit(price, &quote) == 2 && day->n_prices == 1 && year->last == 42.5);

    wr_release(day); /* dead, and disconnected by that */
    CHECK(wr_signal_len(price) == 1);
    CHECK(wr_signal_emit(price, &quote) == 1 && year->n_prices == 2);

    CHECK(wr_signal_disconnect(yearly) == 1);
    CHECK(wr_signal_emit(price, &quote) == 0 && year->n_prices == 2);
    wr_connection_release(yearly);

    wr_release(year);
    wr_signal_free(price);
    return 0;
}
