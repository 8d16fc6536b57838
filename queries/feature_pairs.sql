-- How feature values contribute together: within a step, and across steps that follow one another.
--
-- One row a pair of values and a lag: the one is recorded at a step, the other so many steps before it (0: at the same
-- one). mean_joint is what both contribute together, per occurrence, with its 95 % interval over patients; mean_with and
-- mean_without are what the one contributes where the other is there and where it is not, and difference is that between
-- them, with its interval. Pairs that carry most in sum come first. Values without a step are in no pair. No interval
-- where fewer than 30 effective patients stand behind a mean.
-- Needs rows: rows.duckdb alone has them, for analysts.
-- Arguments: feature, a code; other, another code (or the same), or null for all; level, 'value' or 'code'; lags, how
-- many steps back at most; split, class, stratum, run, top, min_patients; cohort, a predicate over predictions.
-- Example: whenwhy query STORE feature_pairs feature=hdl lags=1 top=5
create or replace temp macro feature_pairs(
    feature, other := null, level := 'value', lags := 0, split := 'held_out', class := 'all', stratum := 'all', run := null,
    top := 20, min_patients := 11, cohort := null
) as table
with this as (select coalesce(run::varchar, (select min(run_id) from runs)) as run_id),
people as (select p.prediction_id, p.subject_id from predictions_for(run, split, class, stratum, cohort) p),
words as (
    select f.feature_value_id as id, f.code as word, case when level = 'value' then f.feature_value_id end as value_id
    from feature_values f where f.run_id = (select run_id from this)
        and case when level in ('value', 'code') then true else error('level is value or code here') end
),
ones as (
    select p.subject_id, r.prediction_id, r.step, w.value_id, sum(r.attribution::double) as s
    from rows r join words w on w.id = r.feature_value_id join people p using (prediction_id)
    where r.run_id = (select run_id from this) and w.word = feature and r.step is not null group by all
),
others as (
    select r.prediction_id, r.step, w.word, w.value_id, sum(r.attribution::double) as s
    from rows_by_prediction r join words w on w.id = r.feature_value_id
    where r.run_id = (select run_id from this) and r.prediction_id in (select o.prediction_id from ones o)
        and r.step is not null and (other is null or w.word = other) group by all
),
pairs as (
    select o.value_id, x.word, x.value_id as other_id, l.lag, o.subject_id, sum(o.s) as s, sum(o.s + x.s) as joint, count(*)::double as n
    from ones o cross join (select unnest(range(lags::integer + 1)) as lag) l
    join others x on x.prediction_id = o.prediction_id and x.step = o.step - l.lag
    where l.lag > 0 or x.word <> feature or x.value_id <> o.value_id
    group by all
),
patients as (select o.value_id, o.subject_id, sum(o.s) as s, count(*)::double as n from ones o group by all),
everywhere as (
    select p.value_id, count(*) as n_patients, sum(p.s) as s, sum(p.n) as n, sum(p.s * p.s) as ss, sum(p.s * p.n) as sn,
        sum(p.n * p.n) as nn, sum(p.n * p.n * p.n) as nnn
    from patients p group by all
),
sums as (
    select q.value_id, q.word, q.other_id, q.lag, count(*) as n_patients, sum(q.joint) as joint, sum(q.joint * q.joint) as jj,
        sum(q.joint * q.n) as jn, sum(pow(q.joint, 3)) as jjj, sum(q.joint * q.joint * q.n) as jjn,
        sum(q.joint * q.n * q.n) as jnn, sum(q.s) as s, sum(q.n) as n, sum(q.s * q.s) as ss, sum(q.s * q.n) as sn, sum(q.n * q.n) as nn,
        sum(q.n * q.n * q.n) as nnn,
        -- Of the same patients where the other is not there, alone and beside everywhere.
        sum((p.s - q.s) * q.s) as s_s, sum((p.s - q.s) * q.n) as s_n, sum((p.n - q.n) * q.s) as n_s, sum((p.n - q.n) * q.n) as n_n,
        sum((p.s - q.s) * (p.s - q.s) - p.s * p.s) as less_ss, sum((p.s - q.s) * (p.n - q.n) - p.s * p.n) as less_sn,
        sum((p.n - q.n) * (p.n - q.n) - p.n * p.n) as less_nn,
        sum(pow(p.n - q.n, 3) - pow(p.n, 3)) as less_nnn
    from pairs q join patients p on p.subject_id = q.subject_id and p.value_id is not distinct from q.value_id group by all
),
means as (
    select u.*, e.n - u.n as n_without, (e.s - u.s) / nullif(e.n - u.n, 0) as mean_without, u.s / u.n as mean_with,
        u.joint / u.n as mean_joint, e.n_patients as n_everywhere, e.ss + u.less_ss as ss_without, e.sn + u.less_sn as sn_without,
        e.nn + u.less_nn as nn_without, e.nnn + u.less_nnn as nnn_without
    from sums u join everywhere e on e.value_id is not distinct from u.value_id
    where u.n_patients >= min_patients::integer
),
errors as (
    select m.*, m.n * m.n / m.nn as effective, m.n_without * m.n_without / nullif(m.nn_without, 0) as effective_without,
        m.n * m.nn / m.nnn - 1 as degrees, m.n_without * m.nn_without / nullif(m.nnn_without, 0) - 1 as degrees_without,
        greatest(0, m.jj - 2 * m.mean_joint * m.jn + m.mean_joint * m.mean_joint * m.nn) as squares,
        sqrt(squares + 2 * greatest(0, m.jjn - 2 * m.mean_joint * m.jnn + m.mean_joint * m.mean_joint * m.nnn) / m.n) / m.n
            as error_of_joint,
        (m.jjj - 3 * m.mean_joint * m.jjn + 3 * pow(m.mean_joint, 2) * m.jnn - pow(m.mean_joint, 3) * m.nnn)
            / nullif(pow(squares, 1.5), 0) as skewness_of_joint,
        sqrt(greatest(0, (m.ss - 2 * m.mean_with * m.sn + m.mean_with * m.mean_with * m.nn) / (m.n * m.n)
            + (m.ss_without - 2 * m.mean_without * m.sn_without + m.mean_without * m.mean_without * m.nn_without)
                / (m.n_without * m.n_without)
            - 2 * (m.s_s - m.mean_with * m.s_n - m.mean_without * m.n_s + m.mean_with * m.mean_without * m.n_n) / (m.n * m.n_without))
            * m.n_everywhere / nullif(m.n_everywhere - 1, 0)) as error_of_difference
    from means m
),
told as (
    select e.*, case when e.effective >= 30 then student_t_975(e.degrees) end as t,
        case when least(e.effective, e.effective_without) >= 30 and e.effective_without is not null
            then student_t_975(least(e.degrees, e.degrees_without)) * e.error_of_difference end as half_of_difference
    from errors e
)
select
    row_number() over (order by abs(t.joint) desc, t.value_id, t.word, t.other_id, t.lag)::integer as rank,
    t.value_id as feature_value_id, a.low, a.high, t.word as other, t.other_id as other_feature_value_id,
    b.low as other_low, b.high as other_high, t.lag, t.n_patients, t.n::bigint as n_pairs,
    t.mean_joint, lower_bound(t.mean_joint, t.error_of_joint, t.t, t.skewness_of_joint) as mean_joint_low,
    upper_bound(t.mean_joint, t.error_of_joint, t.t, t.skewness_of_joint) as mean_joint_high,
    t.mean_with, t.mean_without, t.mean_with - t.mean_without as difference,
    t.mean_with - t.mean_without - t.half_of_difference as difference_low,
    t.mean_with - t.mean_without + t.half_of_difference as difference_high
from told t
left join feature_values a on a.run_id = (select run_id from this) and a.feature_value_id = t.value_id
left join feature_values b on b.run_id = (select run_id from this) and b.feature_value_id = t.other_id
qualify rank <= top::integer
order by rank;
